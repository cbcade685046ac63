"""What planning and reporting know of a system."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from millrace.config import nearest
from millrace.errors import ConfigError

Block = Mapping[str, Any]


@dataclass(frozen=True)
class RawFormat:
    """Raw files of a dataset."""

    name: str
    holds: str
    """What the directory holds, for messages."""
    read_into: str
    """File that is read from the raw files, which may be archived then."""
    demo: bool = False
    """Whether the workflow can simulate such files."""


@dataclass(frozen=True, eq=False)
class Table:
    """Scores of the report: what stands in its rows and columns."""

    titles: Mapping[str, str]
    """Headings by column, in order; columns of ensembles over seeds may be missing."""
    caption: str
    baseline: str
    """What the column ``skill`` compares with."""
    rows: Callable[[Block], list[dict[str, Any]]]
    """Content of `metrics.json` -> a row for each variable: ``variable``, ``skill`` (1 is perfect, 0 no
    better than the best honest baseline) and the other columns."""
    ensemble_rows: Callable[[Block], list[dict[str, Any]]] = lambda _: []
    """The same for ensembles over seeds, whose columns are added to those of the runs."""
    pooled: Sequence[str] = ()
    """Columns that are of all seeds together and have no spread over them."""
    lowest: Sequence[str] = ()
    """Columns of which the lowest of all seeds is shown, such as lower ends of intervals."""


@dataclass(frozen=True)
class SampleKind:
    """Samples of one kind: from what they are cut, and what is done with models on them."""

    name: str
    formats: tuple[str, ...]
    """Raw files that they can be cut from."""
    files: Callable[[Block], dict[str, str]]
    """Model block -> names of the files below ``results/data/{dataset}``, by role."""
    table: Table
    check: Callable[[str, Block, Block], None] = field(default=lambda *_: None)
    """(name of the experiment, its block, dataset block); raises `ConfigError`."""
    ensembles: bool = False
    """Whether the seeds of an experiment are scored together."""
    replay: bool = False
    """Whether samples follow on each other, so that training can go on from forecasts."""
    predictions: bool = False
    """Whether `millrace.predict` applies models to new raw files."""


def known(name: str, names: Any, key: str, kind: str) -> None:
    """Raise `ConfigError` with the nearest name if a name is not among those known."""
    if name not in names:
        raise ConfigError(f"config: {key}: no {kind} named {name!r}; {nearest(name, names)}")


def check_columns(keys: Sequence[str], name: str, experiment: Block, dataset: Block) -> None:
    """Raise `ConfigError` if an experiment wants a column that the dataset does not keep."""
    for key in keys:
        for wanted in experiment["data"].get(key, []):
            known(wanted, dataset.get(key, []), f"experiments.{name}.data.{key}", "column")


def is_count(value: Any) -> bool:
    """Whether a value of the configuration is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
