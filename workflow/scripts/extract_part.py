"""Rule extract_part: one of several parts of the samples of a kind."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.data.division import read_share
    from millrace.data.extraction import extract_part
    from millrace.systems.registry import get_kind

    extract_part(
        get_kind(snakemake.wildcards.kind),
        Path(snakemake.input.source),
        Path(snakemake.output.samples),
        snakemake.params.section,
        read_share(*snakemake.params.share),
        progress("steps"),
    )
