"""Rule simulate_aquifer: a coastal aquifer as the CSV files of a FEFLOW model."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.demo.aquifer import AquiferConfig, write_aquifer
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    config = from_mapping(AquiferConfig, snakemake.params.demo, "demo")
    write_aquifer(config, Path(snakemake.output[0]), progress("time steps"))
