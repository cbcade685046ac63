"""Rule gather_samples: the parts of the samples of a kind, as one file."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.data.extraction import gather
    from millrace.systems.registry import get_kind

    gather(
        get_kind(snakemake.wildcards.kind),
        [Path(path) for path in snakemake.input.parts],
        Path(snakemake.input.source),
        Path(snakemake.output.samples),
        snakemake.params.section,
        snakemake.params.split,
        progress("parts"),
    )
