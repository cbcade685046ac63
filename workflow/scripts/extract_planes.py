"""Rule extract_planes: the series on vertical sections, with their boundary conditions."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.groundwater.planes import PlaneConfig, extract_planes

    config = PlaneConfig.parse(snakemake.params.planes, "planes")
    series, planes = Path(snakemake.input.series), Path(snakemake.output.planes)
    extract_planes(series, planes, config, progress("time steps"))
