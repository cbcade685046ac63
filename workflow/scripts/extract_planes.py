"""Rule extract_planes: the series on vertical sections, with their boundary conditions."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.data.planes import PlaneConfig, extract_planes
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    config = from_mapping(PlaneConfig, snakemake.params.planes, "planes")
    series, planes = Path(snakemake.input.series), Path(snakemake.output.planes)
    extract_planes(series, planes, config, progress("time steps"))
