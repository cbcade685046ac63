"""Rule build_vocabulary: tokens of motion and of road from the training scenarios."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.traffic.figures import vocabulary_plates
    from millrace.systems.traffic.scenarios import TokenConfig, build_vocabulary

    config = TokenConfig.parse(snakemake.params.tokens, "tokens")
    source, output = Path(snakemake.input.source), Path(snakemake.output.vocabulary)
    raw = snakemake.params.format
    vocabulary = build_vocabulary(source, output, config, progress("files"), raw)
    vocabulary_plates(vocabulary, Path(snakemake.output.plates))
