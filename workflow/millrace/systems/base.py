"""What a system says of itself: its raw data, its samples and its models.

A `System` is light, because planning reads all of them. What is heavy is named as ``"module:object"`` and
imported when it is asked for; an object that is at hand may stand there itself. See `resolve`.
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

from pydantic import Field, create_model

from millrace.config import Settings, nearest
from millrace.errors import ConfigError
from millrace.systems.settings import DatasetSettings, SplitDatasetSettings

Block = Mapping[str, Any]
Progress = Callable[[int, int], None]
"""Called with (parts done, all)."""
Reference = Any
"""An object, or ``"module:object"``."""


def resolve(reference: Reference) -> Any:
    """Return the object of a reference, which is imported if need be."""
    return pkgutil.resolve_name(reference) if isinstance(reference, str) else reference


def steps_of_demo(dataset: Block) -> int | None:
    """Output times of a demo, if its block has them."""
    steps = dataset.get("demo", {}).get("steps") if dataset["source"] == "demo" else None
    return steps if isinstance(steps, int) else None


@dataclass(frozen=True)
class RawFormat:
    """Raw files of a dataset."""

    name: str
    """Value of the key ``format`` of a dataset."""
    holds: str
    """What the directory holds, for messages."""
    read_into: str
    """File that is read from the raw files, which may be archived then."""
    in_parts: bool = False
    """Whether several jobs can read them into it, each a part, and its rules make samples of it; the
    dataset has the key ``parts``. See `SampleKind.in_parts` for files that hold samples."""
    first_pass: str = ""
    """Stem of the files of a first pass over the same parts, if there is one."""
    still: Reference | None = None
    """(raw file that changed, what some parts say of it) -> of each whether what it holds of the file is
    the same, such as the times of a file that has grown; None: it is not."""
    simulate: Reference | None = None
    """(settings, directory, progress) -> None: simulate such files; the settings are the dataset's block
    ``demo``, checked against ``simulation``."""
    simulation: Reference | None = None
    """`Settings` of the simulator."""
    environment: str = "data"
    """Conda environment of the simulator, a file of envs/."""
    converted: str | None = None
    """Format, and folder below ``results/data/{dataset}``, to which earlier versions converted such
    files."""
    settings: Reference = SplitDatasetSettings
    """`millrace.systems.settings.DatasetSettings` of its block, in a module without torch; the key
    ``demo`` is added if there is a simulator."""
    check: Callable[[str, Block], None] = field(default=lambda *_: None)
    """(name of the dataset, its block); raises `ConfigError`."""
    steps: Callable[[Block], int | None] = steps_of_demo
    """Dataset block -> number of times, as far as it is known without reading; None: it is not."""
    files: tuple[str, ...] = ()
    """Patterns of files by which ``millrace init`` recognises the directory; none: it does not."""
    remote: bool = False
    """Whether ``source`` may be an address, see `millrace.input_files.is_address`."""
    inspect: Reference | None = None
    """(directory) -> what the template of the system's ``project`` wants to know, such as the columns;
    raises `DataError`."""

    def dataset_settings(self) -> type[DatasetSettings]:
        """Keys of a dataset of this format."""
        made: type[DatasetSettings] = resolve(self.settings)
        if self.simulation is None:
            return made
        return _with_demo(made, resolve(self.simulation))


@cache
def _with_demo(settings: type[DatasetSettings], simulator: type[Settings]) -> type[DatasetSettings]:
    text = settings.model_fields["demo"].description
    demo = (simulator, Field(default_factory=simulator, description=text))
    return create_model(settings.__name__, __base__=settings, __doc__=settings.__doc__, demo=demo)


@dataclass(frozen=True, eq=False)
class Table:
    """Scores of the report: what stands in its rows and columns."""

    titles: Mapping[str, str]
    """Headings by column, in order; columns of ensembles over seeds may be missing."""
    caption: str
    baseline: str
    """What the column ``skill`` compares with."""
    rows: Callable[[Block], list[dict[str, Any]]]
    """Content of `metrics.json` -> a row for each variable: ``variable``, ``unit`` if it has one, ``skill``
    (1 is perfect, 0 no better than the best honest baseline) and the other columns."""
    ensemble_rows: Callable[[Block], list[dict[str, Any]]] = lambda _: []
    """The same for ensembles over seeds, whose columns are added to those of the runs."""
    pooled: Sequence[str] = ()
    """Columns that are of all seeds together and have no spread over them."""
    lowest: Sequence[str] = ()
    """Columns of which the lowest of all seeds is shown, such as lower ends of intervals."""
    first: Sequence[str] = ()
    """Columns that are shown before the reader asks for more, at most eight; by default the first six."""
    of_members: Sequence[str] = ()
    """Columns that say little of a small ensemble, and are held back if the row has few ``members``."""
    errors: Callable[[Block], Mapping[str, Sequence[float | None]]] = lambda _: {}
    """Content of `metrics.json` -> errors of ``model`` and of the trivial baselines, over variables,
    periods and lead times, in the same order for all; None is not defined. A model that does not learn
    repeats one of these baselines."""


@dataclass(frozen=True)
class Extraction:
    """Samples that are made of raw files in one step, by the rule ``extract_samples``."""

    run: Reference
    """(source, output, section, split, progress) -> None, see `millrace.data.extraction.extract`."""
    section: Callable[[Block], Block] = lambda _: {}
    """Dataset block -> settings of the extraction."""
    config: Reference | None = None
    """`Settings` of these; None: there are none."""
    formats: tuple[str, ...] | None = None
    """Raw files that it reads; None: all formats of the kind."""
    run_part: Reference | None = None
    """(source, output, section, share, progress) -> None: the samples of one of several parts, by the rule
    ``extract_part``, with its `millrace.data.parts.Record`; `millrace.data.shares.Share` says which. They
    depend neither on the split nor on other parts. None: they are made in one piece."""
    read: Reference | None = None
    """Of samples that are arrays, what ``run`` reads: see `millrace.systems.arrays.array_kind`."""
    gather: Reference | None = None
    """(files of all parts, source, output, section, split, progress) -> None: what ``run`` writes, bit by
    bit, from parts, by the rule ``gather_samples``; their files may go on holding the samples."""


@dataclass(frozen=True)
class SampleKind:
    """Samples of one kind: of what they are made, how they are opened, what is done with models on them."""

    name: str
    formats: tuple[str, ...]
    """Raw files that they can be made of."""
    dataset: Reference
    """Class that opens the sample files, see `millrace.data.samples.DatasetClass`."""
    evaluation: Reference
    """`millrace.evaluation.base.Evaluation`: how models are scored."""
    table: Table
    caption: str
    """What the figures of the evaluation show, for the report; reStructuredText."""
    settings: Reference | None = None
    """`Settings` of the block ``data`` of an experiment, in a module without torch; None: those of the
    class ``dataset``, which planning imports then."""
    files: Callable[[Block], dict[str, str]] | None = None
    """Model block -> names of the files below ``results/data/{dataset}``, by role; None: ``<name>.h5``,
    whose role is the name of the kind."""
    extraction: Extraction | None = None
    """None: rules of the system's own make the files."""
    in_parts: bool = False
    """Whether several jobs can make the files, each a part of them; the dataset has the key ``parts``."""
    first_pass: str = ""
    """Stem of the files of a first pass over the same parts, if there is one."""
    prepare: Reference | None = None
    """(source, directory, dataset block, model block) -> sample files by role: what rules of the system's
    own do, in one process and without Snakemake."""
    check: Callable[[str, Block, Block], str | None] = field(default=lambda *_: None)
    """(name of the experiment, its block, dataset block) -> a warning; raises `ConfigError`."""
    window: Callable[[Block], int] = field(default=lambda _: 1)
    """Block ``data`` of an experiment -> consecutive times that a sample takes."""
    ensembles: bool = False
    """Whether the seeds of an experiment are scored together."""
    replay: bool = False
    """Whether samples follow on each other, so that training can go on from forecasts."""
    application: Reference | None = None
    """`millrace.evaluation.application.Application`: how models are applied to named arrays and to new raw
    files, as `millrace.load`, ``millrace predict`` and the rule ``predict`` ask for; None: they are not."""
    outline: Reference | None = None
    """(dataset block, data block, grid, levels) -> stand-in for a dataset of that size, or with None of the
    size of the raw files, on which planning builds models to see what they hold in memory."""
    smaller: str = ""
    """What makes samples take less memory, to follow "does not fit: ", such as "lower data.size"."""
    example: Block = field(default_factory=dict)
    """A small experiment to try models on: ``dataset``, the block of a simulated dataset, and ``data``."""

    def data_settings(self) -> type[Settings]:
        """Keys of the block ``data`` of an experiment."""
        given = resolve(self.settings) if self.settings else resolve(self.dataset).config_type
        return cast(type[Settings], given)

    def sample_files(self, model: Block) -> dict[str, str]:
        """Names of the sample files by role."""
        return self.files(model) if self.files else {self.name: f"{self.name}.h5"}

    def extracts(self, raw: RawFormat) -> bool:
        """Whether these samples are made of raw files of a format in one step."""
        return self.extraction is not None and raw.name in (self.extraction.formats or self.formats)


@dataclass(frozen=True)
class DivisionLimits:
    """How far a model can be divided among processes, known without torch from its `Model.settings`."""

    heads: Callable[[Any], Sequence[int]]
    """settings -> numbers of attention heads that tensor parallelism must divide."""
    stages: Callable[[Any], int]
    """settings -> most stages a pipeline can have."""
    steps: Callable[[Block], int]
    """Block ``data`` of an experiment -> steps of a rollout."""


@dataclass(frozen=True)
class Model:
    """A model that can be named in an experiment."""

    name: str
    kind: str
    """Samples that it takes."""
    spec: Reference
    """`millrace.models.spec.ModelSpec`."""
    settings: Reference | None = None
    """`Settings` of the block ``model`` of an experiment, in a module without torch; None: those of the
    ``spec``, which planning imports then."""
    limits: DivisionLimits | None = None
    """None: it cannot be divided, every process has a replica."""
    check: Callable[[str, Block], str | None] = field(default=lambda *_: None)
    """(name of the experiment, its block ``model``) -> a warning; raises `ConfigError`."""
    example: Block = field(default_factory=dict)
    """Block ``model`` of a small one, without the name; by default all is as in its settings."""

    def model_settings(self) -> type[Settings]:
        """Keys of the block ``model`` of an experiment, besides the name."""
        given = resolve(self.settings) if self.settings else resolve(self.spec).config
        return cast(type[Settings], given)


@dataclass(frozen=True)
class Cost:
    """What a job on raw files takes, by their size: measured on one core, see ``make bench-data``."""

    seconds: float
    """CPU time for a GB of raw files, where it is read first as where what was made of it is."""
    written: float
    """Bytes that are written for one of the raw files."""
    memory_gb: float = 1.0
    """Memory of a job, whatever it reads."""
    held: float = 0.0
    """Bytes of memory for one of the raw files of a job."""
    of_part: bool | None = None
    """Whether it is of the jobs that make parts, or the samples whole; None: there are such jobs anyway."""
    changed: "Callable[[Cost, Block], Cost] | None" = None
    """(this, section of a dataset) -> what it is with these settings; None: it is always this."""

    def of(self, dataset: Block) -> "Cost":
        """What it is for a dataset with these settings."""
        return self if self.changed is None else self.changed(self, dataset)


@dataclass(frozen=True)
class System:
    """A field: its raw data, its samples and its models. Any part may be empty."""

    name: str
    formats: tuple[RawFormat, ...] = ()
    kinds: tuple[SampleKind, ...] = ()
    models: tuple[Model, ...] = ()
    rules: tuple[str, ...] = ()
    """Rules of its own that make sample files, which ``-R data`` runs again."""
    costs: Mapping[str, Cost] = field(default_factory=dict)
    """Of jobs on raw files, by their rule, or ``extract_<kind>`` for what the generic rules extract."""
    project: str = ""
    """``"package:file"``: Jinja template of the configuration that ``millrace init`` writes, see
    `millrace.project.init`; empty: it is made of the examples of kinds and models."""


def known(name: str, names: Any, key: str, kind: str) -> None:
    """Raise `ConfigError` with the nearest name if a name is not among those known."""
    if name not in names:
        raise ConfigError(f"config: {key}: no {kind} named {name!r}; {nearest(name, names)}")


def check_columns(keys: Sequence[str], name: str, experiment: Block, dataset: Block) -> None:
    """Raise `ConfigError` if an experiment wants a column that the dataset does not keep."""
    for key in keys:
        for wanted in experiment["data"].get(key, []):
            known(wanted, dataset.get(key, []), f"experiments.{name}.data.{key}", "column")


def check_replay(name: str, experiment: Block, kind: SampleKind) -> None:
    """Raise `ConfigError` if training cannot start from forecasts, or would never start from one."""
    replay = experiment["train"].get("replay")
    if not replay:
        return
    key = f"config: experiments.{name}.train.replay"
    if not kind.replay:
        raise ConfigError(
            f"{key}: samples of {kind.name} do not follow on each other; leave it out"
        )
    window: Any = kind.data_settings().parse(experiment["data"], "data")
    reach = 2 * window.output_steps
    if replay["longest"] < reach:
        raise ConfigError(
            f"{key}.longest: expected {reach} or more (twice data.output_steps: the lead time of the first "
            f"forecast that starts from another), got {replay['longest']}; raise it or leave "
            "train.replay out"
        )


def dataset_names(experiment: Block) -> list[str]:
    """Names of an experiment's datasets, of which there may be one or a list."""
    named = experiment["dataset"]
    return [named] if isinstance(named, str) else list(named)
