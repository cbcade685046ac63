"""How models on arrays are applied, see `millrace.systems.arrays`.

Named arrays have the names of inputs and targets, along ``time`` for a series, else along ``sample``, and
along the axes of the grid, which are named as their coordinates. Of a series ``states`` are inputs and
targets of the given times, and ``forcings`` the inputs of the times that are forecast, where a model was
trained with `future_inputs`.

Shape suffixes: S samples or times, B of a batch, T steps, V targets, K cells.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from millrace.data.arrays import CHUNKS, ROLES, ArrayDataset
from millrace.data.hdf5 import rows_per_chunk
from millrace.data.recipe import outline_in, restore
from millrace.errors import ConfigError, DataError
from millrace.evaluation.application import (
    ISSUE_TIME,
    ISSUED,
    TIME,
    Application,
    Piece,
    Prepared,
    Recipe,
    SeriesForecasts,
    dataset_of,
    days_of,
    values_of,
    window_starts,
)
from millrace.evaluation.array_program import array_program
from millrace.evaluation.arrays import physical, values_per_sample
from millrace.evaluation.program import Program
from millrace.evaluation.selection import Period, period_of
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.arrays import ArrayConfig, Samples
from millrace.systems.base import Progress, resolve
from millrace.systems.registry import get_kind

_BATCH_VALUES = 1 << 24


class ArrayApplication(Application):
    """Models on arrays."""

    options = SeriesForecasts

    def write(
        self, recipe: Recipe, states: Any, forcings: xr.Dataset | None, directory: Path
    ) -> Prepared:
        """See `Application.write`."""
        states = dataset_of(states, "states")
        about, axis = _About.of(recipe), "time" if _is_series(recipe) else "sample"
        about.check_grid(states)
        config = ArrayConfig.parse(recipe["definition"]["data"], "data")
        time = days_of(states, "states") if axis == "time" else np.arange(states.sizes[axis])
        ahead = np.empty(0)
        if axis == "time" and config.future_inputs and forcings is not None:
            ahead = days_of(dataset_of(forcings, "forcings"), "forcings")
            ahead = ahead[ahead > time[-1]]
            forcings = forcings.sel(time=forcings["time"][-len(ahead) :]) if len(ahead) else None
        elif axis == "time" and not config.future_inputs:
            step = np.median(np.diff(time)) if len(time) > 1 else 1.0
            ahead = time[-1] + step * np.arange(1, config.output_steps + 1)
        n_steps = len(time)
        rows: dict[str, Any] = {"time": np.concatenate([time, ahead])}
        rows["order"] = np.arange(len(rows["time"]))
        for role in ROLES:
            for name, (unit, on_grid) in about.fields[role].items():
                axes = (axis, *about.axes_in(states)) if on_grid else (axis,)
                wanted = role == "inputs" or (axis == "time" and config.input_steps)
                if name not in states and not wanted:
                    values = np.zeros((n_steps, *about.grid))  # what is to be predicted
                else:
                    values = values_of(states, name, axes, unit, "states")
                after = np.repeat(values[-1:], len(ahead), axis=0)
                if role == "inputs" and len(ahead) and config.future_inputs:
                    assert forcings is not None
                    after = values_of(forcings, name, axes, unit, "forcings")
                rows[f"{role}/{name}"] = np.concatenate([values, after])
        has_truth = axis == "time" or all(name in states for name in about.fields["targets"])
        path = restore(about.content, directory / "samples.h5", rows)
        return Prepared({"samples": path}, n_steps if has_truth else 0)

    def prepare(
        self,
        recipe: Recipe,
        source: Path,
        raw: str,
        directory: Path,
        workers: int,
        options: Any = None,
    ) -> Prepared:
        """See `Application.prepare`; all samples are read."""
        del raw, workers
        if options is not None:
            _period(recipe, options)  # refused before anything is read
        about, extraction = _About.of(recipe), get_kind(recipe["kind"]).extraction
        assert extraction is not None
        given = json.loads(recipe["preparation"]["arrays"])["settings"]
        settings = None
        if extraction.config is not None:
            settings = resolve(extraction.config).parse(given, "settings")
        samples: Samples = resolve(extraction.read)(source, settings)
        first = next(iter(samples.targets.values()))[0]
        n = np.shape(first)[0]
        time = np.arange(n) if samples.time is None else np.asarray(samples.time[0])
        fields = {
            f"{role}/{name}": getattr(samples, role)[name] for role in ROLES for name in about.fields[role]
            if name in getattr(samples, role) or _missing(source, role, name)
        }  # fmt: skip

        def fill(file: h5py.File) -> None:
            for name, (values, _) in fields.items():
                rows = CHUNKS * rows_per_chunk(file[name].shape, np.float32)
                for begin in range(0, n, rows):
                    part = np.asanyarray(values[begin : begin + rows]).astype(np.float64)
                    part = np.ma.filled(part, np.nan)
                    if part.shape[1:] != file[name].shape[1:] or not np.isfinite(part).all():
                        raise DataError(
                            f"{source}: {name} has the shape {np.shape(values)} or values that are not "
                            f"finite; expected numbers of the shape {file[name].shape[1:]} of the training"
                        )
                    file[name][begin : begin + len(part)] = part

        rows: dict[str, Any] = {"time": time, "order": np.arange(n)} | dict.fromkeys(fields, n)
        path = restore(about.content, directory / "samples.h5", rows, fill)
        return Prepared({"samples": path}, n)

    def pieces(
        self,
        model: TrainedModel,
        recipe: Recipe,
        prepared: Prepared,
        options: Any,
        progress: Progress | None = None,
    ) -> Iterator[Piece]:
        """See `Application.pieces`."""
        dataset: ArrayDataset = model.dataset
        total, given = len(dataset.time), prepared.steps
        given = total if given is None else given
        period = _period(recipe, options)
        if _is_series(recipe):
            window = (dataset.config.input_steps, dataset.config.output_steps)
            is_date = _is_date(recipe)
            starts, n_true = window_starts(given, dataset.time, window, options, period, is_date)
        else:
            starts = np.arange(total)[:: options.stride][: options.limit]
            n_true = int((starts < given).sum())
        size = max(1, min(64, _BATCH_VALUES // values_per_sample(dataset)))
        for begin in range(0, len(starts), size):
            part = starts[begin : begin + size]
            # A piece has the ground truth of all its forecasts or of none.
            for some in filter(
                len, (part[: max(0, n_true - begin)], part[max(0, n_true - begin) :])
            ):
                batch = dataset.at_times(0, some)
                names = {"forecast": physical(dataset, model(batch))}
                if some[0] in starts[:n_true]:
                    names["truth"] = physical(dataset, batch.y_KBTV)
                    if dataset.config.input_steps:
                        last = (batch.y_KBTV * 0) + batch.last.flatten(2).permute(2, 0, 1)[
                            :, :, None
                        ]
                        names["persistence"] = physical(dataset, last)
                made = {key: _named(recipe, dataset, values, some) for key, values in names.items()}
                baselines = {k: v for k, v in made.items() if k == "persistence"}
                yield Piece(made["forecast"], made.get("truth"), baselines)
            if progress is not None:
                progress(begin + len(part), len(starts))

    def example(self, recipe: Recipe, directory: Path) -> Prepared:
        """See `Application.example`."""
        about, config = _About.of(recipe), ArrayConfig.parse(recipe["definition"]["data"], "data")
        random, n = np.random.default_rng(0), config.length + 1
        rows: dict[str, Any] = {"time": np.arange(n), "order": np.arange(n)}
        for role in ROLES:
            for name, (_, on_grid) in about.fields[role].items():
                kept = about.content["attributes"][f"{role}/{name}"]
                drawn = random.standard_normal((n, *(about.grid if on_grid else ())))
                rows[f"{role}/{name}"] = float(kept["mean"]) + float(kept["std"]) * drawn
        return Prepared({"samples": restore(about.content, directory / "samples.h5", rows)})

    def program(
        self, model: TrainedModel, recipe: Recipe, prepared: Prepared, options: Any
    ) -> Program:
        """See `Application.program`."""
        del prepared, options
        about = _About.of(recipe)
        scalars = [name for name, (_, on_grid) in about.fields["inputs"].items() if not on_grid]
        return array_program(model, about.axes, scalars)


class _About:
    """What the outline of the samples says of fields and grid."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content, attributes = content, content["attributes"]
        self.grid = tuple(int(n) for n in attributes[""]["grid"])
        self.coordinates = {
            name: np.asarray(content["values"][f"coordinates/{name}"])
            for name in attributes[""]["coordinates"]
        }
        self.fields = {
            role: {
                name: (str(attributes[f"{role}/{name}"]["unit"]),
                       content["values"][f"{role}/{name}"].ndim > 1)
                for name in attributes[""][role]
            }
            for role in ROLES
        }  # fmt: skip

    @classmethod
    def of(cls, recipe: Recipe) -> "_About":
        return cls(outline_in(recipe, "samples"))

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the grid."""
        if [values.shape for values in self.coordinates.values()] == [(n,) for n in self.grid]:
            return tuple(self.coordinates)
        return tuple(f"axis_{number}" for number in range(len(self.grid)))

    def axes_in(self, data: xr.Dataset) -> tuple[str, ...]:
        """Names of the axes of the grid in what is given, where those of the training are numbered."""
        if set(self.axes) <= set(data.dims):
            return self.axes
        return tuple(str(one) for one in data.dims if one not in ("time", "sample"))

    def check_grid(self, data: xr.Dataset) -> None:
        """Raise `DataError` unless what is given is on the grid of the training."""
        axes = self.axes_in(data)
        sizes = tuple(data.sizes[axis] for axis in axes)
        if sizes != self.grid:
            raise DataError(
                f"states: the axes {', '.join(axes)} have the lengths {sizes}; expected {self.grid}, the "
                "grid of the training"
            )
        for name, values in self.coordinates.items():
            if name in data.coords and not np.allclose(data[name].values, values):
                raise DataError(f"states: {name!r} is not that of the training; interpolate to it")


def _missing(source: Path, role: str, name: str) -> bool:
    raise DataError(f"{source}: {name!r} is not among the {role}, with which the model was trained")


def _is_series(recipe: Recipe) -> bool:
    return bool(json.loads(recipe["preparation"]["arrays"])["series"])


def _is_date(recipe: Recipe) -> bool:
    unit = outline_in(recipe, "samples")["attributes"].get("time", {}).get("unit", "")
    return str(unit).startswith("days since 1970")


def _period(recipe: Recipe, options: SeriesForecasts) -> Period:
    if options.times is not None and not _is_series(recipe):
        raise ConfigError(
            "times: these samples have none; --limit, or `limit`, takes the first ones"
        )
    return period_of(options.times, recipe, _is_date(recipe))


def _named(
    recipe: Recipe, dataset: ArrayDataset, values_BTVK: NDArray[np.float64], starts: NDArray
) -> xr.Dataset:
    """Fields with names, units and coordinates."""
    about, config = _About.of(recipe), dataset.config
    axis = ISSUE_TIME if _is_series(recipe) else "sample"
    grid = values_BTVK.reshape(*values_BTVK.shape[:3], *dataset.grid_shape)
    axes, data = (axis, "lead", *about.axes), {}
    steps = np.arange(1, config.output_steps + 1)
    if axis == "sample":
        grid, axes = grid[:, 0, None], (axis, "lead", *about.axes)
    for v, name in enumerate(dataset.names["targets"]):
        about_field = {"units": dataset.units["targets"][v], "long_name": name}
        values = grid[:, :, v].astype(np.float32)
        data[name] = (
            (axes, values, about_field)
            if axis == ISSUE_TIME
            else ((axis, *about.axes), values[:, 0], about_field)
        )
    unit = str(about.content["attributes"].get("time", {}).get("unit", "1"))
    coordinates: dict[str, Any] = {
        name: (about.axes if values.ndim > 1 or len(about.axes) == 1 else name, values,
               {"units": unit_of, "long_name": name})
        for name, (values, unit_of) in dataset.coordinates.items()
    }  # fmt: skip
    if axis == "sample":
        coordinates["sample"] = (axis, starts, {"long_name": "number of the sample"})
        return xr.Dataset(data, coordinates)
    time = dataset.time
    coordinates |= {
        ISSUE_TIME: (axis, time[starts + config.input_steps - 1], {**ISSUED, "units": unit}),
        "lead": ("lead", steps, {"long_name": "steps after the last given state", "units": "1"}),
        "valid_time": (
            (axis, "lead"),
            time[starts[:, None] + config.input_steps + steps - 1],
            {**TIME, "units": unit},
        ),
    }
    return xr.Dataset(data, coordinates)


APPLICATION = ArrayApplication()
