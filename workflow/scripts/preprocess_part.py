"""Rule preprocess_part: one of several parts of the raw CSV files, checked."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.data.division import read_share
    from millrace.processes import keep_freed_memory
    from millrace.systems.groundwater.series import RawSeries, series_options
    from millrace.systems.groundwater.series_parts import preprocess_part

    keep_freed_memory()
    preprocess_part(
        RawSeries(
            Path(snakemake.input.source),
            **series_options(dict(snakemake.params.items())),
            workers=snakemake.threads,
        ),
        Path(snakemake.output.series),
        read_share(*snakemake.params.share),
        Path(snakemake.input.missing) if snakemake.input.missing else None,
        progress("files"),
    )
