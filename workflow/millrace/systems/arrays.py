"""The common case of a system from outside: arrays in, arrays out.

A plug-in reads its raw files into `Samples`, and `array_kind` makes a kind of samples of that: the HDF5
file, splits, normalisation, scores against baselines, table, figures and captions are supplied.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from numpy.typing import ArrayLike

from millrace.config import Count, Names, Settings, option
from millrace.errors import ConfigError
from millrace.systems.base import Block, Extraction, Reference, SampleKind, Table, resolve
from millrace.systems.settings import MissingConfig

Field = tuple[ArrayLike, str]
"""Values, and their unit; that of plain numbers is ``1``."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Arrays on a grid with any number of axes, that of one sample after the other.

    Values may be anything that has a shape and can be cut into slices, such as an array of NumPy or a
    variable of an open file: they are read piece by piece.
    """

    inputs: Mapping[str, Field]
    r"""What is given, by name: [S, \*grid], or [S] for what is the same in all cells."""
    targets: Mapping[str, Field]
    r"""What is predicted, by name: [S, \*grid]."""
    coordinates: Mapping[str, Field]
    """Of the cells: along each axis of the grid in turn, [n], of which figures draw the last one to the
    right and the one before it upwards; or several of the shape of the grid each, such as latitude and
    longitude of stations."""
    time: Field | None = None
    """Of the steps of a series, [S], increasing; None for samples that do not depend on each other."""
    missing: MissingConfig | None = None
    """What a number that looks like a no-data value means, such as the key ``missing`` of the dataset."""
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What reading left out, such as ``{"samples": {"did not converge": 2}}``, for `samples.json`."""


class ArrayConfig(Settings):
    """Samples that are arrays: inputs are given, targets are wanted."""

    inputs: Names = ()
    """By default all."""
    targets: Names = ()
    """By default all."""
    input_steps: int = option(0, ge=0, le=10**9, unit="steps")
    """Of a series, before those that are predicted, at which inputs and targets are given; 0: only
    inputs are given, those of the steps that are predicted."""
    output_steps: Count = option(1, unit="steps")
    """Of a series, predicted at once."""
    stride: Count = option(1, unit="steps")
    """Between the starts of consecutive training windows."""
    future_inputs: bool = False
    """Give the inputs of the predicted steps as well: those of a scenario, which are known before."""

    @property
    def length(self) -> int:
        """Steps from the first that is given to the last that is predicted."""
        return self.input_steps + self.output_steps


def array_kind(
    name: str,
    formats: Sequence[str],
    read: Reference,
    *,
    series: bool = False,
    section: Callable[[Block], Block] = lambda _: {},
    config: Reference | None = None,
    baselines: Mapping[str, Reference] | None = None,
    example: Block | None = None,
) -> SampleKind:
    r"""Make a kind of samples of a function that reads arrays.

    Parameters
    ----------
    name : str
        Of the kind; its file is ``<name>.h5``.
    formats : sequence of str
        Raw files that are read. Their `RawFormat` needs ``<name>.h5`` as ``read_into``, and settings
        that are `SplitDatasetSettings`.
    read : reference
        (directory of the raw files, settings) -> `Samples`.
    series : bool
        Whether samples follow on each other in time. If so, training, validation and test are periods with
        a gap between them; if not, samples are assigned to them at random, with a fixed seed.
    section, config : optional
        Section of the dataset -> settings of ``read``, and their class, as in `Extraction`; without
        ``config`` the settings are None.
    baselines : mapping, optional
        Further forecasts to compare with, by name: (dataset, starts) -> forecast in physical units,
        [B, T, V, \*grid], for samples that start at positions ``starts``, int64[B], of a
        `millrace.data.arrays.ArrayDataset`. Those supplied are the mean, ridge regression and, of a series,
        persistence.
    example : mapping, optional
        See `SampleKind.example`.
    """
    given = dict(baselines or {})

    def extract(*arguments: Any) -> None:
        resolve("millrace.data.arrays:extract_arrays")(*arguments, resolve(read), series)

    def evaluate(*arguments: Any) -> Any:
        functions = {key: resolve(function) for key, function in given.items()}
        return resolve("millrace.evaluation.arrays:evaluate")(*arguments, functions)

    def check(experiment: str, block: Block, dataset: Block) -> None:
        _check(f"config: experiments.{experiment}.data", block["data"], dataset, series)

    return SampleKind(
        name=name,
        formats=tuple(formats),
        dataset="millrace.data.arrays:ArrayDataset",
        settings=ArrayConfig,
        evaluation=SimpleNamespace(run=evaluate, ensemble=None),
        table=_table(["mean", "persistence", "ridge", *given]),
        caption=_CAPTION,
        files=lambda _: {"samples": f"{name}.h5"},
        extraction=Extraction(extract, section, config, read=read),
        application="millrace.evaluation.array_application:APPLICATION",
        check=check,
        example=example or {},
    )


def _check(key: str, data: Block, dataset: Block, series: bool) -> None:
    config = ArrayConfig.parse(data, key)
    if "split" not in dataset:
        raise ConfigError(
            f"{key}: its dataset has no key split, which says what is trained on; if it is not allowed, "
            "the settings of its raw format are not SplitDatasetSettings"
        )
    if not series and (config.length > 1 or config.stride > 1):
        raise ConfigError(
            f"{key}: these samples do not follow on each other in time; leave out input_steps, "
            "output_steps and stride"
        )
    gap = dataset["split"].get("gap", 0)
    if config.length > gap + 1:
        raise ConfigError(
            f"{key}: a window of {config.length} steps is longer than the gap of {gap} between the "
            "splits, so test data would leak into training: raise split.gap of the dataset"
        )


def _rows(run: Block) -> list[dict[str, Any]]:
    return [
        {
            "variable": variable,
            "unit": "" if scores["unit"] == "1" else scores["unit"],
            **{key: scores[key] for key in ("skill", "baseline", "baseline_rmse")},
            **scores["forecasts"]["model"],
            "validation_skill": run["validation"][variable]["skill"],
            **{
                f"{name}_{key}": value
                for name, forecast in scores["forecasts"].items()
                if name != "model"
                for key, value in forecast.items()
            },
        }
        for variable, scores in run["test"].items()
    ]


def _errors(run: Block) -> dict[str, list[float | None]]:
    scores = [one["forecasts"] for split in ("validation", "test") for one in run[split].values()]
    # To equal a fitted regression is an achievement.
    trivial = [name for name in ("mean", "persistence") if all(name in one for one in scores)]
    return {
        name: [one[name][score] for one in scores for score in ("rmse", "relative_l2")]
        for name in ("model", *trivial)
    }


def _table(baselines: Sequence[str]) -> Table:
    return Table(
        titles={
            "skill": "skill",
            "validation_skill": "skill (validation)",
            "rmse": "RMSE",
            **{f"{name}_rmse": f"RMSE of {name.replace('_', ' ')}" for name in baselines},
            "relative_l2": "rel. L2",
            **{f"{name}_relative_l2": f"rel. L2 of {name.replace('_', ' ')}" for name in baselines},
        },
        caption="Skill is 1 − RMSE / RMSE of the best baseline: 1 is perfect, 0 no better than that. "
        "RMSE in the unit of the variable; rel. L2 is the norm of all errors over that of all true values. "
        "Baselines are fitted to training samples: mean, their mean in each cell; ridge, linear "
        "regression from all inputs to all targets whose regularisation is chosen on validation samples; "
        "persistence, the last given state.",
        baseline="the best baseline",
        rows=_rows,
        errors=_errors,
    )


_CAPTION = """\
*maps* or *lines*: inputs, ground truth, prediction and error of three test samples, those with the least,
the median and the greatest error. *scatter*: prediction against ground truth in all test samples."""
