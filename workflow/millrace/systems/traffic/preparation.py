"""From recorded traffic to the samples of a model in one process, without the rules of the workflow."""

from pathlib import Path

from millrace.systems.base import Block
from millrace.systems.traffic.scenarios import TokenConfig, build_vocabulary, tokenise


def prepare(source: Path, directory: Path, dataset: Block, model: Block) -> dict[str, Path]:
    """Make the sample file of a model of raw files of any format; returns it by its role.

    ``dataset`` and ``model`` are blocks of the configuration, ``source`` is the directory of the raw files.
    """
    del model
    config = TokenConfig.parse(dataset.get("tokens", {}), "tokens")
    vocabulary, scenarios = directory / "vocabulary.h5", directory / "scenarios.h5"
    build_vocabulary(source, vocabulary, config, raw=dataset["format"])
    tokenise(source, vocabulary, scenarios, config, raw=dataset["format"])
    return {"scenarios": scenarios}
