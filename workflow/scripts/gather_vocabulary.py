"""Rule gather_vocabulary: tokens of motion and of road from what all parts sampled."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.traffic.figures import vocabulary_plates
    from millrace.systems.traffic.scenarios import TokenConfig, gather_vocabulary

    vocabulary = gather_vocabulary(
        [Path(path) for path in snakemake.input.parts],
        Path(snakemake.input.source),
        Path(snakemake.output.vocabulary),
        TokenConfig.parse(snakemake.params.tokens, "tokens"),
        progress("parts"),
        snakemake.params.format,
    )
    vocabulary_plates(vocabulary, Path(snakemake.output.plates))
