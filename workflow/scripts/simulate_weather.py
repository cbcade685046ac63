"""Rule simulate_weather: weather of a small planet in the NetCDF layout of WeatherBench 2."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.demo.barotropic import BarotropicConfig, write_weather
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    config = from_mapping(BarotropicConfig, snakemake.params.demo, "demo")
    write_weather(config, Path(snakemake.output[0]), progress("time steps"))
