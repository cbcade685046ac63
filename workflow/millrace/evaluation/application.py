"""How models on samples of one kind are applied: to named arrays, or to raw files not seen in training.

What is given becomes sample files like those of the training, in a temporary directory, so that a forecast
goes through the same code as an evaluation. Forecasts come in pieces of consecutive entries of their first
axis, so that memory does not grow with their number.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from millrace.config import Count, Settings
from millrace.data.samples import Files
from millrace.data.units import conversion
from millrace.errors import ConfigError, DataError, listed
from millrace.evaluation.program import NotExportable, Program
from millrace.evaluation.selection import Period, Selection
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress

Recipe = Mapping[str, Any]
"""See `millrace.data.recipe`."""

TIME = {"standard_name": "time", "long_name": "time"}
ISSUED = {"standard_name": "forecast_reference_time", "long_name": "time of the last given state"}
CLOCK = {
    "units": "days since 1970-01-01 00:00:00",
    "calendar": "standard",
    "units_metadata": "leap_seconds: none",
}
"""Of times that are days since 1970."""
ISSUE_TIME = "issue_time"
"""Axis of forecasts in time: the time of the last given state."""


class SeriesForecasts(Selection):
    """Which forecasts are made of a series."""

    every: bool = False
    """From all states, and not only from the last ones; so it is if `times` or `limit` are given."""
    stride: Count | None = None
    """Steps between forecasts; null: as many as one has."""


class NoOptions(Settings):
    """There is nothing to choose."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Sample files of what is given."""

    files: Files
    steps: int | None = None
    """Times whose states are given, the first ones; None: all. What follows has forcings alone."""
    remarks: Sequence[str] = ()
    """In which ways this differs from what the model was trained on."""
    first: int = 0
    """Number of the first sample among those of the source, of which only some were read: what is drawn
    at random depends on it, so that it is the same."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Some forecasts, and what they are compared with."""

    forecast: xr.Dataset
    """All variables and coordinates with units and names; the first axis is that of the pieces."""
    truth: xr.Dataset | None = None
    """Of the same variables and axes as far as it is known; None: it is not."""
    baselines: Mapping[str, xr.Dataset] = dataclasses.field(default_factory=dict)
    """Forecasts to compare with, by name."""
    weight: xr.DataArray | None = None
    """Of the cells in mean errors; None: all have the same."""


class Application(ABC):
    """How models on samples of one kind are applied."""

    options: ClassVar[type[Settings]]
    """Of forecasts; what `LoadedModel.predict` and the command take beside what is given."""
    export_options: ClassVar[type[Settings]] = NoOptions
    """Of programs; what `LoadedModel.export` and the command take."""
    exported_data: ClassVar[Mapping[str, Any]] = {}
    """Keys of the block ``data`` that samples of programs have in place of those of the training."""

    spreads: ClassVar[bool] = True
    """Whether members may be spread about their mean to calibrate them."""
    of_spread: ClassVar[Sequence[str]] = ()
    """Options on which it depends how much members differ."""

    def calibrated_options(self, validation: Mapping[str, Any]) -> dict[str, Any]:
        """Options that the scores of a run on validation data ask for; by default none."""
        del validation
        return {}

    @abstractmethod
    def write(
        self, recipe: Recipe, states: Any, forcings: xr.Dataset | None, directory: Path
    ) -> Prepared:
        """Write sample files of named arrays; raises `DataError` if they are not what the model needs."""

    @abstractmethod
    def prepare(
        self,
        recipe: Recipe,
        source: Path,
        raw: str,
        directory: Path,
        workers: int,
        options: Any = None,
    ) -> Prepared:
        """Write sample files of raw files of the format ``raw``; raises `DataError` for malformed ones.

        ``options`` are those that `pieces` is then given; what it needs for them may be read alone.
        """

    @abstractmethod
    def pieces(
        self,
        model: TrainedModel,
        recipe: Recipe,
        prepared: Prepared,
        options: Any,
        progress: Progress | None = None,
    ) -> Iterator[Piece]:
        """Forecast all that is given, a piece at a time; ``progress`` is called with (done, all)."""

    def as_written(self, forecast: xr.Dataset, options: Any) -> xr.Dataset:
        """Return what files get of a piece, if an option asks for other names in them."""
        del options
        return forecast

    def example(self, recipe: Recipe, directory: Path) -> Prepared:
        """Write sample files of two samples or more that are made up, on which programs are tried.

        They are the same each time. Raises `NotExportable` if these models are not exported.
        """
        raise _not_exported(recipe)

    def program(
        self, model: TrainedModel, recipe: Recipe, prepared: Prepared, options: Any
    ) -> Program:
        """The model as a program, with examples from two samples, see `millrace.evaluation.program`.

        Raises `NotExportable` if this one is not exported.
        """
        raise _not_exported(recipe)


def _not_exported(recipe: Recipe) -> NotExportable:
    return NotExportable(
        f"models on samples of {recipe['kind']} cannot be exported as programs: their Application has no "
        "methods `example` and `program`"
    )


def values_of(
    data: xr.Dataset, name: str, axes: Sequence[str], unit: str | None, what: str
) -> NDArray[np.float64]:
    """Values of a variable with its axes in this order and in this unit, float64.

    A variable without the attribute ``units`` is taken to be in the unit. Raises `DataError` if it is
    missing, has other axes, is in a unit of something else, or has values that are not finite.
    """
    if name not in data.variables:
        raise DataError(
            f"{what}: no variable {name!r}; it has {listed(list(map(str, data.variables)))}"
        )
    variable = data[name]
    if set(variable.dims) != set(axes):
        raise DataError(
            f"{what}: {name!r} has the axes {', '.join(map(str, variable.dims)) or 'none'}; expected "
            f"{', '.join(axes) or 'none'}"
        )
    values = np.asarray(variable.transpose(*axes).values, dtype=np.float64)
    given = variable.attrs.get("units")
    if unit is not None and given is not None and given != unit:
        factors = conversion(str(given), unit)
        if factors is None:
            raise DataError(f"{what}: {name!r} is in {given!r}; expected {unit!r}")
        values = values * factors[0] + factors[1]
    if not np.isfinite(values).all():
        raise DataError(
            f"{what}: {name!r} has values that are not finite; fill them or leave them out"
        )
    return values


def field(unit: str, name: str, standard: str = "") -> dict[str, str]:
    """Attributes of a field: unit, name for people, standard name of CF if there is one."""
    about = {"units": unit, "long_name": name, **({"standard_name": standard} if standard else {})}
    if standard.endswith("temperature"):
        about["units_metadata"] = "temperature: on_scale"
    return about


def dataset_of(given: Any, what: str) -> xr.Dataset:
    """What is given, if it is a `xarray.Dataset`."""
    if not isinstance(given, xr.Dataset):
        raise ConfigError(f"{what}: expected a xarray.Dataset, got {type(given).__name__}")
    return given


def days_of(data: xr.Dataset, what: str) -> NDArray[np.float64]:
    """Times along the axis ``time``: dates as days since 1970, numbers as they are; increasing."""
    if "time" not in data.coords or data["time"].dims != ("time",):
        raise DataError(
            f"{what}: no coordinate `time` along an axis of that name; expected the time of each state"
        )
    time = data["time"].values
    if np.issubdtype(time.dtype, np.datetime64):
        time = (time - np.datetime64(0, "D")) / np.timedelta64(1, "D")
    time = np.asarray(time, dtype=np.float64)
    if not (np.diff(time) > 0).all():
        raise DataError(f"{what}: times do not increase; sort them and keep one of each")
    return time


def window_starts(
    given: int,
    time_T: NDArray[np.float64],
    window: tuple[int, int],
    options: SeriesForecasts,
    period: Period,
    is_date: bool = False,
) -> tuple[NDArray[np.int64], int]:
    """First states of forecast windows, and how many of them have their ground truth: the first ones.

    Parameters
    ----------
    given : int
        Times with states, the first ones.
    time_T : ndarray
        All times with what a forecast takes besides.
    window : tuple of int
        Steps given, and forecast.
    options : SeriesForecasts
        By default forecasts from the last states, or, with ``every``, those whose truth is known, and the
        last one. Of a period also others are made.
    period : Period
        What `SeriesForecasts.times` means.
    is_date : bool
        Whether times are days since 1970, for messages.

    Raises `DataError` if there are too few times, `ConfigError` if none is meant.
    """
    (past, ahead), total = window, len(time_T)
    stride = options.stride or ahead
    if given < past or total < past + ahead:
        raise DataError(
            f"{given} times with states and {total - given} times after them with forcings; this model "
            f"needs {past} with states, and forcings to {ahead} after the last"
        )
    last, n_true = given - past, given - past - ahead + 1
    if not (options.every or options.times or options.limit):
        if last + past + ahead > total:
            raise DataError(
                f"forcings end {total - given} times after the last state; this model needs them at "
                f"{ahead} times after it"
            )
        return np.array([last]), int(n_true > last)
    if period.name:
        possible = np.arange(min(last, total - past - ahead) + 1)
        issued = time_T[possible + past - 1]
        ends = (
            (time_T[possible], time_T[possible + past + ahead - 1])
            if period.whole
            else (issued,) * 2
        )
        starts = possible[period.holds(*ends)][::stride]
        if not len(starts):
            raise period.nothing(issued, is_date)
    else:
        starts = np.arange(0, n_true, stride)
        if total >= given + ahead:
            starts = np.append(starts, last)
    if not len(starts):
        raise DataError(
            f"{given} times with states and {total - given} times after them with forcings: no forecast of "
            f"{ahead} times has its truth or its forcings"
        )
    starts = starts[: options.limit]
    return starts, int((starts < n_true).sum())
