"""What the rules of samples do for every system: simulate raw files, extract samples, whole or in parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from millrace.data.shares import Share
from millrace.data.split import SplitConfig
from millrace.errors import ConfigError
from millrace.systems.base import Extraction, Progress, RawFormat, SampleKind, resolve
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
    config, divided = _settings(kind, section), _split(split)
    resolve(_extraction(kind).run)(source, output, config, divided, progress)


def extract_part(
    kind: SampleKind,
    source: Path,
    output: Path,
    section: Mapping[str, Any],
    share: Share,
    progress: Progress | None = None,
) -> None:
    """Make one of the parts of what `extract` makes; raises errors like it, and if there are no parts."""
    extraction, config = _extraction(kind), _settings(kind, section)
    if extraction.run_part is None:
        raise ConfigError(f"samples of {kind.name} are made in one piece: leave parts out")
    resolve(extraction.run_part)(source, output, config, share, progress)


def gather(
    kind: SampleKind,
    parts: Sequence[Path],
    source: Path,
    output: Path,
    section: Mapping[str, Any],
    split: Mapping[str, Any] | None,
    progress: Progress | None = None,
) -> None:
    """Make the sample file of a kind from the files of its parts, see `extract`.

    Raises `DataError` if one of them is damaged, or they are not of the same raw files and settings.
    """
    config, divided = _settings(kind, section), _split(split)
    resolve(_extraction(kind).gather)(parts, source, output, config, divided, progress)


def _settings(kind: SampleKind, section: Mapping[str, Any]) -> Any:
    config = _extraction(kind).config
    return None if config is None else resolve(config).parse(section, kind.name)


def _split(split: Mapping[str, Any] | None) -> SplitConfig | None:
    return None if split is None else SplitConfig.parse(split, "split")


def _extraction(kind: SampleKind) -> Extraction:
    if kind.extraction is None:
        raise ConfigError(f"samples of {kind.name} are made by rules of their own")
    return kind.extraction


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
    [(role, name)] = kind.sample_files(model).items()
    section = _extraction(kind).section(dataset)
    extract(kind, source, directory / name, section, dataset.get("split"))
    return {role: directory / name}
