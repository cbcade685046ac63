"""What the rules `simulate_raw` and `extract_samples` do for every system."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millrace.data.split import SplitConfig
from millrace.errors import ConfigError
from millrace.systems.base import Progress, RawFormat, SampleKind, resolve
from millrace.systems.registry import raw_format


def simulate(
    raw: RawFormat, settings: Mapping[str, Any], output: Path, progress: Progress | None = None
) -> None:
    """Simulate raw files of a format into a directory; raises `ConfigError` for wrong ``settings``."""
    if raw.simulate is None:
        raise ConfigError(
            f"format {raw.name} has no simulator: give the directory of the raw files"
        )
    config: Any = resolve(raw.simulation).parse(settings, "demo")
    resolve(raw.simulate)(config, output, progress)


def extract(
    kind: SampleKind,
    source: Path,
    output: Path,
    section: Mapping[str, Any],
    split: Mapping[str, Any] | None,
    progress: Progress | None = None,
) -> None:
    """Make the sample file of a kind from raw files.

    The kind must be extracted in one step from the raw files in the directory ``source``; the HDF5 file
    ``output`` appears only when it is complete. ``section`` are settings of the extraction, checked against
    its dataclass. ``split`` is that of the dataset, see `SplitConfig`; None: the raw files say what is
    training, validation and test.

    Raises `ConfigError` if the kind is made by rules of its own, or a setting is wrong, and `DataError` if
    a raw file is malformed.
    """
    if kind.extraction is None:
        raise ConfigError(f"samples of {kind.name} are made by rules of their own")
    config: Any = None
    if kind.extraction.config is not None:
        config = resolve(kind.extraction.config).parse(section, kind.name)
    parts = None if split is None else SplitConfig.parse(split, "split")
    resolve(kind.extraction.run)(source, output, config, parts, progress)


def prepare(
    kind: SampleKind,
    source: Path,
    directory: Path,
    dataset: Mapping[str, Any],
    model: Mapping[str, Any],
) -> dict[str, Path]:
    """Make the sample files of a model from raw files without Snakemake; returns them by role.

    ``dataset`` and ``model`` are sections of the configuration; raises errors like `extract`.
    """
    if not kind.extracts(raw_format(dataset)):
        made: dict[str, Path] = resolve(kind.prepare)(source, directory, dataset, model)
        return made
    assert kind.extraction is not None
    [(role, name)] = kind.sample_files(model).items()
    section = kind.extraction.section(dataset)
    extract(kind, source, directory / name, section, dataset.get("split"))
    return {role: directory / name}
