"""Rule tokenise_part: the scenarios of one of several parts of the files as tokens."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.data.division import read_share
    from millrace.systems.traffic.scenarios import TokenConfig, tokenise_part

    tokenise_part(
        Path(snakemake.input.source),
        Path(snakemake.input.vocabulary),
        Path(snakemake.output.scenarios),
        TokenConfig.parse(snakemake.params.tokens, "tokens"),
        read_share(*snakemake.params.share),
        progress("files"),
        snakemake.params.format,
    )
