"""Rule gather_vocabulary: tokens of motion and of road from what all parts sampled."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.traffic.figures import vocabulary_plates
    from millrace.systems.traffic.scenarios import TokenConfig, gather_vocabulary

    config = TokenConfig.parse(snakemake.params.tokens, "tokens")
    parts, output = map(Path, snakemake.input.parts), Path(snakemake.output.vocabulary)
    vocabulary = gather_vocabulary([*parts], output, config, progress("parts"))
    vocabulary_plates(vocabulary, Path(snakemake.output.plates))
