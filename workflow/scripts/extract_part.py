"""Rule extract_part: one of several parts of the samples of a kind."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.data.extraction import extract
    from millrace.systems.registry import get_kind

    extract(
        get_kind(snakemake.wildcards.kind),
        Path(snakemake.input.source),
        Path(snakemake.output.samples),
        snakemake.params.section,
        snakemake.params.split,
        progress("steps"),
        part=(int(snakemake.wildcards.part), snakemake.params.parts),
    )
