"""Rule simulate_traffic: road users at intersections as the CSV files of recorded tracks."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.demo.traffic import TrafficConfig, simulate
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    config = from_mapping(TrafficConfig, snakemake.params.demo, "demo")
    simulate(config, Path(snakemake.output[0]), progress("towns"))
