"""Rule extract_weather: states of the atmosphere on one grid, in SI units."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.data.series import SplitConfig
from millrace.data.weather import WeatherConfig, extract_weather
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    extract_weather(
        Path(snakemake.input.source),
        Path(snakemake.output.weather),
        from_mapping(WeatherConfig, snakemake.params.weather, "weather"),
        from_mapping(SplitConfig, snakemake.params.split, "split"),
        progress("time steps"),
    )
