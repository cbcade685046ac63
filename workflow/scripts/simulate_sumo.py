"""Rule simulate_sumo: networks and traffic of SUMO, in its own files."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.demo.sumo import SumoConfig, simulate
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    config = from_mapping(SumoConfig, snakemake.params.demo, "demo")
    simulate(config, Path(snakemake.output[0]), progress("towns"))
