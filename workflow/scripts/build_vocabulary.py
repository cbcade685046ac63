"""Rule build_vocabulary: tokens of motion and of road from the training scenarios."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.data.scenarios import TokenConfig, build_vocabulary
from millrace.jobs import job
from millrace.plots import vocabulary_plates

with job(snakemake.log[0]) as progress:
    config = from_mapping(TokenConfig, snakemake.params.tokens, "tokens")
    source, output = Path(snakemake.input.source), Path(snakemake.output.vocabulary)
    vocabulary = build_vocabulary(source, output, config, progress("recordings"))
    vocabulary_plates(
        vocabulary.motion, vocabulary.road, vocabulary.coverage, snakemake.output.plates
    )
