"""Rule gather_scenarios: the tokens of all parts, as one file."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.traffic.scenarios import TokenConfig, gather_scenarios

    gather_scenarios(
        [Path(path) for path in snakemake.input.parts],
        Path(snakemake.input.source),
        Path(snakemake.input.vocabulary),
        Path(snakemake.output.scenarios),
        TokenConfig.parse(snakemake.params.tokens, "tokens"),
        progress("parts"),
        snakemake.params.format,
    )
