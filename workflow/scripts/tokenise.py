"""Rule tokenise: every scenario as motion tokens over road tokens."""

from pathlib import Path

from millrace.job_log import job
from millrace.systems.traffic.scenarios import TokenConfig, tokenise

with job(snakemake) as progress:
    tokenise(
        Path(snakemake.input.source),
        Path(snakemake.input.vocabulary),
        Path(snakemake.output.scenarios),
        TokenConfig.parse(snakemake.params.tokens, "tokens"),
        progress("recordings"),
    )
