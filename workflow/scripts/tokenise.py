"""Rule tokenise: every scenario as tokens of motion on pieces of road."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.data.scenarios import TokenConfig, tokenise
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    tokenise(
        Path(snakemake.input.source),
        Path(snakemake.input.vocabulary),
        Path(snakemake.output.scenarios),
        from_mapping(TokenConfig, snakemake.params.tokens, "tokens"),
        progress("recordings"),
    )
