"""The configuration as a whole: its blocks, how it is read, and its JSON schema."""

import copy
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from millrace.config import (
    UNIQUE,
    LayoutName,
    Layouts,
    Name,
    Names,
    Settings,
    SomeNames,
    Text,
    as_written,
    check_size,
    option,
    schema_of,
)
from millrace.errors import ConfigError
from millrace.scaling.settings import ScalingSettings
from millrace.systems.base import known
from millrace.systems.registry import formats, get_kind, load_plugins, models, raw_format
from millrace.training.config import TrainSettings
from millrace.training.parallel.config import ParallelConfig

RunSeed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[tuple[RunSeed, ...], Field(min_length=1), *UNIQUE]
RaceName = Annotated[
    str,
    Field(
        pattern=r"^n[1-9][0-9]{0,5}_gpu[1-9][0-9]{0,5}(-or-n[1-9][0-9]{0,5}_gpu[1-9][0-9]{0,5})*$"
    ),
]


class RunSettings(Settings):
    """What a plain `snakemake` makes: every combination of the three lists is trained and evaluated.

    With two or more seeds, those of an experiment and layout are also evaluated together, as an ensemble.
    """

    experiments: SomeNames
    """Names from the block `experiments`."""
    layouts: Layouts
    """`n<nodes>_gpu<GPUs per node>`, such as `n1_gpu2`; without GPUs as many CPU processes."""
    seeds: Seeds
    """Decide initial weights and order of the samples; more seeds say how far a score is luck."""


class ExperimentSettings(Settings):
    """What is trained on which dataset."""

    dataset: Text | Annotated[tuple[Text, ...], Field(min_length=1), *UNIQUE]
    """Name of a dataset, or a list of names: of several, one model learns from all, with common
    statistics; the report shows the scores on the first, `metrics.json` has all."""
    layouts: Layouts | None = None
    """Layouts of this experiment instead of those of `run`, if a model needs a certain number of GPUs;
    `race` comes first."""
    seeds: Seeds | None = None
    """Seeds of this experiment instead of those of `run`."""
    race: Annotated[tuple[LayoutName, ...], Field(min_length=2), *UNIQUE] | None = None
    """Layouts that compete instead of `run.layouts`: on a cluster jobs of all are submitted, the first that
    starts trains, the others are removed; on one machine the first layout of one node trains. For long
    queues, if it does not matter on which nodes a run trains."""
    data: dict[str, Any]
    """What a sample holds; its keys depend on the model, see below."""
    model: dict[str, Any]
    """`name` of the model, and its parameters, see below."""
    train: TrainSettings
    """How it is trained."""
    sweep: dict[str, Any] = option(
        default_factory=dict,
        examples=[{"train.learning_rate": [1e-3, 3e-3], "model.hidden": [32, 64]}],
    )
    """Settings to try, and how: dotted keys such as `train.learning_rate` with a list or a range, and
    `random`, `optuna` or `seeds`; see docs/howto/sweep.md."""
    parallel: ParallelConfig = ParallelConfig()
    """How the GPUs of a layout are used; may change while a run is trained. If a model does not fit on one
    GPU."""


class PredictionSettings(Settings):
    """Forecasts of a trained model for raw files that no training has seen.

    They are checked, and cut in the same way as those of the training, but normalised with the statistics
    of its training period, which the checkpoint holds; forcings that the experiment names must be there.
    Groundwater may be on another mesh of the same site. `results/predict/{name}/predictions.nc` has the
    forecasts (CF-1.11), `metrics.json` the errors against the truth in the files, beside those of
    baselines. If the run was not trained yet, it is.
    """

    experiment: Text
    """A name from the block `experiments`."""
    layout: RaceName
    """Layout of the run whose last checkpoint is used."""
    seed: RunSeed
    """Its seed."""
    source: Text
    """Directory that holds the raw files, or the name of a dataset whose raw files are meant."""
    options: dict[str, Any] = option(
        default_factory=dict, examples=[{"times": "validation", "members": 20}]
    )
    """Of the forecasts, as `millrace predict` takes them: what is forecast, members, seed. By default
    forecasts are from all states. They are checked when the job begins."""


class ComparedRun(Settings):
    """A run that is compared."""

    experiment: Text
    """A name from the block `experiments`."""
    layout: RaceName
    """Its layout."""
    seed: RunSeed
    """Its seed."""


class ComparisonSettings(Settings):
    """Two runs side by side, as a page of the report: `results/compare/{name}.html`.

    It shows the settings that differ, the losses, and paired tests over test cases: the difference of the
    mean errors, A − B, with its 95 % interval by a bootstrap of blocks. What is not trained yet, is.
    """

    a: ComparedRun
    """One run."""
    b: ComparedRun
    """The other one."""


class Configuration(Settings):
    """All that a configuration may hold; of datasets and models each has its own keys besides."""

    run: RunSettings
    """What a plain `snakemake` makes."""
    datasets: dict[Name, dict[str, Any]]
    """Raw data and how it is cut, by names of your choice."""
    experiments: dict[Name, ExperimentSettings]
    """What is trained on which dataset, by names of your choice."""
    predictions: dict[Name, PredictionSettings] = option(
        default_factory=dict,
        examples=[
            {
                "finer_mesh": {
                    "experiment": "gino_salt",
                    "layout": "n1_gpu1",
                    "seed": 0,
                    "source": "/data/finer",
                }
            }
        ],
    )
    """Which trained model is used on which new raw files."""
    comparisons: dict[Name, ComparisonSettings] = option(
        default_factory=dict,
        examples=[
            {
                "layers": {
                    "a": {"experiment": "gino_salt", "layout": "n1_gpu1", "seed": 0},
                    "b": {"experiment": "gino_deep", "layout": "n1_gpu1", "seed": 0},
                }
            }
        ],
    )
    """Pairs of runs that the report compares."""
    scaling: ScalingSettings = ScalingSettings()
    """Which layouts are measured, and what is asked of the scaling report."""
    plugins: Names = ()
    """Systems and models from outside: files such as `my_gru.py`, or modules of installed packages,
    each with a System under the name SYSTEM."""
    container: Text | None = option(None, examples=["millrace.sif"])
    """File of the image that jobs run in under a profile with `software-deployment-method: apptainer`, made
    from `envs/millrace.def`; without effect under others."""


def read_configuration(
    config: Mapping[str, Any], folders: Iterable[Path] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Check every key of a configuration by itself, that of experiments which do not run as well.

    Returns it with texts as the numbers that they are, and the names of its plug-ins, which are loaded.
    Raises `ConfigError` with the first mistake: its key and what was expected.
    """
    check_size(config, "config:")
    plugins = load_plugins(_plugins(config), folders)
    Configuration.parse(config, "config:")
    made = as_written(Configuration, config)
    for name, dataset in made["datasets"].items():
        if (wanted := dataset.get("format")) is not None:
            known(str(wanted), formats(), f"datasets.{name}.format", "format")
        keys = raw_format(dataset).dataset_settings()
        keys.parse(dataset, f"config: datasets.{name}")
        made["datasets"][name] = as_written(keys, dataset)
    for name, block in made["experiments"].items():
        key = f"experiments.{name}"
        if "name" not in block["model"]:
            close = difflib.get_close_matches("name", map(str, block["model"]), n=1)
            told = (
                f"unknown key {close[0]!r}: did you mean 'name'?"
                if close
                else "key 'name' is missing"
            )
            raise ConfigError(f"config: {key}.model: {told}")
        known(str(block["model"]["name"]), models(), f"{key}.model.name", "model")
        model = models()[block["model"]["name"]]
        given = {k: value for k, value in block["model"].items() if k != "name"}
        for section, settings, values in (
            ("data", get_kind(model.kind).data_settings(), block["data"]),
            ("model", model.model_settings(), given),
        ):
            settings.parse(values, f"config: {key}.{section}")
            block[section] |= as_written(settings, values)
    if plugins:
        made["plugins"] = plugins
    return made, plugins


def configuration_schema() -> dict[str, Any]:
    """JSON schema of the configuration with all formats and models, for editors."""
    made = copy.deepcopy(schema_of(Configuration))
    default = next(iter(formats()))
    datasets, experiments = (
        next(iter(made["properties"][key]["patternProperties"].values()))
        for key in ("datasets", "experiments")
    )
    choices = {"enum": list(formats()), "default": default}
    datasets |= {
        "properties": {"format": choices},
        "allOf": [
            {
                "if": {
                    "properties": {"format": {"const": name}},
                    "required": [] if name == default else ["format"],
                },
                "then": schema_of(one.dataset_settings()),
            }
            for name, one in formats().items()
        ],
    }
    experiments["properties"]["model"] = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": list(models())}},
    }
    experiments["allOf"] = [
        {
            "if": {"properties": {"model": {"properties": {"name": {"const": name}}}}},
            "then": {
                "properties": {
                    "data": schema_of(get_kind(model.kind).data_settings()),
                    "model": _with_name(schema_of(model.model_settings()), name),
                }
            },
        }
        for name, model in models().items()
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _with_name(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**model, "properties": {"name": {"const": name}, **model["properties"]}}


def _plugins(config: Mapping[str, Any]) -> list[str]:
    named = config.get("plugins", []) if isinstance(config, Mapping) else []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"config: plugins: expected a list of files or modules, got {named!r}")
    return named
