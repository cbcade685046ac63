"""Rule gather_series: the parts of a series, as one file."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.groundwater.series_parts import gather_series

    gather_series(
        [Path(path) for path in snakemake.input.parts],
        Path(snakemake.output.series),
        progress("parts"),
    )
