"""How models of weather are applied: to named states, or to raw files of any format that is read.

``states`` are variables by the short names of ECMWF or any of their other names: those at the surface along
``time``, ``latitude``, ``longitude``, those of the air along ``level`` (hPa) as well. The grid is that of
the training, in whatever order. Each forecast feeds on itself, for as many days as asked for.

Shape suffixes: T times, L lead times, B samples, C channels (also V), I x J cells, K cells.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from millrace.config import Count, Positive, Seed, option
from millrace.data.recipe import outline_in, restore
from millrace.errors import ConfigError, DataError
from millrace.evaluation.application import (
    CLOCK,
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
    field,
    values_of,
    window_starts,
)
from millrace.evaluation.ensemble_forecasts import joined_members
from millrace.evaluation.program import Program
from millrace.evaluation.selection import period_of
from millrace.evaluation.trained_model import TrainedModel
from millrace.input_files import resolve_address
from millrace.systems.base import Progress
from millrace.systems.registry import get_kind
from millrace.systems.weather.catalogue import Catalogue
from millrace.systems.weather.dataset import WeatherDataset, WeatherWindowConfig
from millrace.systems.weather.grids import goes_round
from millrace.systems.weather.program import weather_program
from millrace.systems.weather.rollout import rolled_out
from millrace.systems.weather.settings import WeatherExtraction
from millrace.systems.weather.source import AXES, open_sources, with_known_axes
from millrace.systems.weather.units import ALIASES, SI

STANDARD_NAMES = {
    "2t": ("air_temperature", "temperature at 2 m"),
    "10u": ("eastward_wind", "eastward wind at 10 m"),
    "10v": ("northward_wind", "northward wind at 10 m"),
    "msl": ("air_pressure_at_mean_sea_level", "pressure at mean sea level"),
    "sp": ("surface_air_pressure", "pressure at the surface"),
    "z": ("geopotential", "geopotential"),
    "u": ("eastward_wind", "eastward wind"),
    "v": ("northward_wind", "northward wind"),
    "t": ("air_temperature", "temperature"),
    "q": ("specific_humidity", "specific humidity"),
}
"""Standard names of CF, and names for people, by short name."""
FILE_NAMES = {"2t": "t2m", "10u": "u10", "10v": "v10"}
"""Names in files of those whose own begins with a digit, which CF advises against."""


class WeatherForecasts(SeriesForecasts):
    """Which forecasts are made, and how far."""

    days: Positive = 5.0
    """Length of a forecast."""
    members: Count = 1
    """Forecasts from each start; several differ by `perturb`."""
    perturb: float = option(0.0, ge=0)
    """Standard deviation of random smooth changes of the first states, in those of the change of a channel
    in one step."""
    seed: Seed = 0
    """Of these changes."""
    names: Literal["cf", "weatherbench2"] = "cf"
    """Names in files: short ones with attributes of CF, or names and axes of WeatherBench 2."""


class WeatherApplication(Application):
    """Models of weather."""

    options = WeatherForecasts
    of_spread = ("perturb",)

    def write(
        self, recipe: Recipe, states: Any, forcings: xr.Dataset | None, directory: Path
    ) -> Prepared:
        """See `Application.write`; there are no forcings."""
        if forcings is not None:
            raise DataError("forcings: models of weather take none; leave them out")
        data = with_known_axes(dataset_of(states, "states"))
        content = outline_in(recipe, "weather")
        time = days_of(data, "states")
        axes = {name: np.asarray(content["values"][name]) for name in AXES}
        data = _on_axes(data, axes, "states")
        channels: list[NDArray[np.float64]] = []
        for role, own in (("surface", AXES[1:]), ("air", AXES)):
            for name in content["attributes"][""][role]:
                found = next((one for one in ALIASES.get(name, (name,)) if one in data), name)
                values = values_of(data, found, ("time", *own), SI.get(name), "states")
                channels += [values] if role == "surface" else list(np.moveaxis(values, 1, 0))
        state = np.stack(channels, axis=1).astype(np.float32)
        path = restore(content, directory / "weather.h5", {"time": time, "state": state})
        return Prepared({"weather": path})

    def prepare(
        self,
        recipe: Recipe,
        source: Path,
        raw: str,
        directory: Path,
        workers: int,
        options: Any = None,
    ) -> Prepared:
        """See `Application.prepare`."""
        del raw, workers
        content, given = outline_in(recipe, "weather"), dict(recipe["preparation"]["weather"])
        given = {key: value for key, value in given.items() if key not in ("split", "years")}
        config = WeatherExtraction.parse(given, "weather")
        place = resolve_address(source)
        reader = Catalogue(place, open_sources(place), config)
        for axis in AXES:
            own = np.asarray(content["values"][axis])
            found = getattr(reader.grid, axis)
            if found.shape != own.shape or not np.allclose(found, own, atol=1e-4):
                raise DataError(
                    f"{source}: {axis} is not that of the training ({_range(own)}), but {_range(found)}; "
                    "interpolate to it"
                )
        read = range(len(reader.time))
        if options is not None:
            hours = float(content["attributes"][""]["hours"])
            starts, _, ahead = _starts(recipe, reader.time, hours, options)
            stop = int(starts[-1]) + _past(recipe) + ahead
            read = range(int(starts[0]), min(len(reader.time), stop))

        def fill(file: h5py.File) -> None:
            for begin, block_SCIJ in reader.blocks(read):
                first = begin - read.start
                file["state"][first : first + len(block_SCIJ)] = block_SCIJ

        rows = {"time": reader.time[read.start : read.stop], "state": len(read)}
        path = restore(content, directory / "weather.h5", rows, fill)
        return Prepared({"weather": path}, first=read.start)

    def pieces(
        self,
        model: TrainedModel,
        recipe: Recipe,
        prepared: Prepared,
        options: Any,
        progress: Progress | None = None,
    ) -> Iterator[Piece]:
        """See `Application.pieces`."""
        dataset: WeatherDataset = model.dataset
        past = _past(recipe)
        starts, n_true, leads = _starts(recipe, dataset.time, dataset.step_hours, options)
        for number, start in enumerate(starts):
            given_KBSV = dataset.core_states(0, np.arange(start, start + past)[None])
            issued = dataset.time[start + past - 1]
            made = joined_members(
                [
                    _named(recipe, dataset, rolled_out(model, one, float(issued), leads), issued)
                    for one in _perturbed(dataset, given_KBSV, options, prepared.first + start)
                ]
            )
            last = given_KBSV[:, 0, -1:].expand(-1, leads, -1)
            truth, baselines = None, {}
            if number < n_true:
                steps = np.arange(start + past, start + past + leads)
                truth = _named(recipe, dataset, dataset.core_states(0, steps), issued)
                baselines = {"persistence": _named(recipe, dataset, last, issued)}
            area = np.cos(np.deg2rad(made["latitude"].astype(float)))
            yield Piece(made, truth, baselines, area / area.mean())
            if progress is not None:
                progress(number + 1, len(starts))

    def as_written(self, forecast: xr.Dataset, options: Any) -> xr.Dataset:
        """See `Application.as_written`."""
        return as_forecast(forecast) if options.names == "weatherbench2" else forecast

    def example(self, recipe: Recipe, directory: Path) -> Prepared:
        """See `Application.example`."""
        content, stats = outline_in(recipe, "weather"), recipe["normalisation"]["variables"]
        n_times = get_kind(recipe["kind"]).window(recipe["definition"]["data"]) + 1
        step_days = float(content["attributes"][""]["hours"]) / 24
        shape = (n_times, *content["values"]["state"].shape[1:])
        drawn = np.random.default_rng(0).standard_normal(shape, np.float32)
        for number, one in enumerate(stats.values()):
            drawn[:, number] = one["mean"] + one["std"] * drawn[:, number]
        rows = {"time": 10_000 + step_days * np.arange(n_times), "state": drawn}
        return Prepared({"weather": restore(content, directory / "weather.h5", rows)})

    def program(
        self, model: TrainedModel, recipe: Recipe, prepared: Prepared, options: Any
    ) -> Program:
        """See `Application.program`."""
        del recipe, prepared, options
        return weather_program(model)


def _past(recipe: Recipe) -> int:
    return WeatherWindowConfig.parse(recipe["definition"]["data"], "data").input_steps


def _starts(
    recipe: Recipe, time: NDArray[np.float64], hours: float, options: Any
) -> tuple[NDArray[np.int64], int, int]:
    """First given states of forecasts, how many have their ground truth, and steps of each forecast."""
    leads = max(1, int(options.days * 24 / hours))
    known_alone = options.every and options.stride and not options.times
    ahead = np.arange(1, 1 if known_alone else leads + 1) * hours / 24
    every = np.concatenate([time, time[-1] + ahead])
    window, period = (_past(recipe), leads), period_of(options.times, recipe, is_date=True)
    return *window_starts(len(time), every, window, options, period, is_date=True), leads


def _perturbed(
    dataset: WeatherDataset, given_KBSV: Tensor, options: Any, number: int
) -> Iterator[Tensor]:
    """First states of all members: those given, plus the same smooth noise at all their steps."""
    if options.members > 1 and not options.perturb:
        raise ConfigError(
            "members: forecasts from one state are the same; give perturb > 0 as well"
        )
    if not options.perturb:
        yield given_KBSV
        return
    rounds = goes_round(dataset.longitude)
    smooth = (0.0, *(size / 32 for size in dataset.shape))
    for member in range(options.members):
        random = np.random.default_rng([options.seed, number, member])
        noise = random.standard_normal((len(dataset.variables), *dataset.shape))
        edges = ("nearest", "nearest", "wrap" if rounds else "nearest")
        noise = gaussian_filter(noise, smooth, mode=edges)
        noise /= noise.std(axis=(1, 2), keepdims=True)
        change_VIJ = options.perturb * dataset.increment_scale[:, None, None] * noise
        change_KV = torch.from_numpy(change_VIJ).flatten(1).T.to(given_KBSV)
        yield given_KBSV + change_KV[:, None, None]


def as_forecast(forecast: xr.Dataset) -> xr.Dataset:
    """Forecasts with the names, axes and times of WeatherBench 2."""
    names = {FILE_NAMES.get(short, short): known[0] for short, known in ALIASES.items()}
    names |= {ISSUE_TIME: "time", "lead_time": "prediction_timedelta", "member": "number"}
    lead = as_timedelta(forecast["lead_time"].values)
    about = {"standard_name": "forecast_period", "long_name": "lead time"}
    made = forecast.drop_vars("valid_time").assign_coords(lead_time=("lead_time", lead, about))
    return made.rename({key: value for key, value in names.items() if key in made.variables})


def as_timedelta(hours: NDArray[np.float64]) -> NDArray[np.timedelta64]:
    """Lead times of whole minutes."""
    return np.asarray(np.rint(hours * 60).astype("m8[m]").astype("m8[ns]"))


def _on_axes(data: xr.Dataset, axes: dict[str, NDArray], what: str) -> xr.Dataset:
    """The same in the order of the axes of the training; raises `DataError` if it is on others."""
    for name, values in axes.items():
        if name not in data.dims:
            continue
        known = data[name].values.astype(np.float64)
        turned = np.mod(known, 360.0) if name == "longitude" else known
        own = np.mod(values, 360.0) if name == "longitude" else values
        apart = np.abs(turned[:, None] - own)
        nearest = apart.argmin(axis=0) if len(known) else np.empty(0, int)
        if not len(known) or (apart.min(axis=0) > 1e-4).any():
            raise DataError(
                f"{what}: {name} is not that of the training ({_range(values)}), but {_range(known)}; "
                "interpolate to it"
            )
        data = data.isel({name: nearest})
    return data


def _range(values: NDArray) -> str:
    if not len(values):
        return "none"
    return f"{len(values)} from {values[0]:g} to {values[-1]:g}"


def _named(
    recipe: Recipe, dataset: WeatherDataset, states_KTV: Tensor, issued: float
) -> xr.Dataset:
    """States [I J, T, V] as fields with names, units and coordinates."""
    values_TCIJ = dataset.to_physical(states_KTV).transpose(1, 2, 0)
    values = values_TCIJ.reshape(*values_TCIJ.shape[:2], *dataset.shape).astype(np.float32)[None]
    first, data = 0, {}
    for name in (*dataset.surface, *dataset.air):
        in_air = name in dataset.air and first >= len(dataset.surface)
        count = len(dataset.levels) if in_air else 1
        part = values[:, :, first : first + count]
        axes = (ISSUE_TIME, "lead_time", *(AXES if in_air else AXES[1:]))
        standard, text = STANDARD_NAMES.get(name, ("", name))
        about = field(SI.get(name, "1").replace("**", ""), text, standard)
        data[FILE_NAMES.get(name, name)] = (axes, part if in_air else part[:, :, 0], about)
        first += count
    hours = dataset.step_hours * np.arange(1, values.shape[1] + 1)
    coordinates: dict[str, Any] = {
        ISSUE_TIME: (ISSUE_TIME, np.array([issued]), {**ISSUED, **CLOCK}),
        "lead_time": (
            "lead_time", hours,
            {"standard_name": "forecast_period", "long_name": "lead time", "units": "hours"},
        ),
        "valid_time": (
            (ISSUE_TIME, "lead_time"),
            issued + hours[None] / 24,
            {**TIME, **CLOCK},
        ),
        "latitude": (
            "latitude", dataset.latitude,
            {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
        ),
        "longitude": (
            "longitude", dataset.longitude,
            {"standard_name": "longitude", "units": "degrees_east", "axis": "X"},
        ),
    }  # fmt: skip
    if dataset.air:
        about = {"standard_name": "air_pressure", "units": "hPa", "positive": "down", "axis": "Z"}
        coordinates["level"] = ("level", dataset.levels, about)
    return xr.Dataset(data, coordinates)


APPLICATION = WeatherApplication()
