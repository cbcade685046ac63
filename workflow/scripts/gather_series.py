"""Rule gather_series: the parts of a series, as one file."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.groundwater.series import RawSeries, series_options
    from millrace.systems.groundwater.series_parts import gather_series

    options = series_options(dict(snakemake.params.items()))
    gather_series(
        RawSeries(Path(snakemake.input.source), **options),
        [Path(path) for path in snakemake.input.parts],
        Path(snakemake.output.series),
        Path(snakemake.input.missing) if snakemake.input.missing else None,
        progress("parts"),
    )
