"""Rule tokenise: every scenario as motion tokens over road tokens."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.traffic.scenarios import TokenConfig, tokenise

    tokenise(
        Path(snakemake.input.source),
        Path(snakemake.input.vocabulary),
        Path(snakemake.output.scenarios),
        TokenConfig.parse(snakemake.params.tokens, "tokens"),
        progress("files"),
        snakemake.params.format,
    )
