"""Rule extract_samples: samples of one kind, made of the raw files in one step."""

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
    )
