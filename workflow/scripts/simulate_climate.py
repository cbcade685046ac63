"""Rule simulate_climate: temperature on an icosahedral grid as the files of ICON."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.demo.climate import ClimateConfig, write_climate
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    config = from_mapping(ClimateConfig, snakemake.params.demo, "demo")
    write_climate(config, Path(snakemake.output[0]), progress("time steps"))
