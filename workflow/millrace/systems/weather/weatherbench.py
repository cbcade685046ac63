"""Scores of a weather model in the layout of WeatherBench 2, over all starts of its test period.

Writes a file of NetCDF for the model and for each baseline, as `weatherbench2.evaluation` does: variables by
their names there, along metric, region, lead_time and level. Forecasts in its layout are written by
`millrace predict --names weatherbench2`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from millrace.command_line import make_parser
from millrace.errors import ConfigError, DataError, ExitCode, exits_with_code
from millrace.files import atomic_write
from millrace.systems.base import Progress

METRICS = ("mse", "rmse", "mae", "bias", "acc")
LAYOUT = {"issue_time": "time", "lead_time": "prediction_timedelta", "member": "number"}
"""Axes of forecasts there by their names here."""


def results(
    metrics: Mapping[str, Any], regions: list[str], hours: Any, channels: Any
) -> xr.Dataset:
    """Scores of one forecast as a dataset of WeatherBench 2.

    Parameters
    ----------
    metrics : mapping
        Of each metric values by lead time, channel and region [L, C, 1 + R], of which the first is the
        globe, as of `WeatherScores.by_region`.
    regions : list of str
        Names of the others.
    hours : array_like
        Lead times.
    channels : mapping
        By variable the positions of its channels, and their levels (hPa), none at the surface.
    """
    from millrace.systems.weather.units import ALIASES, SI

    values_MRLC = np.array([np.moveaxis(metrics[name], 2, 0) for name in METRICS])
    data: dict[str, Any] = {}
    level: list[float] = []
    for name, (at, levels) in channels.items():
        axes = ("metric", "region", "lead_time", *(("level",) if levels else ()))
        part = values_MRLC[..., at] if levels else values_MRLC[..., at[0]]
        unit = SI.get(name, "1").replace("**", "")
        about = {"long_name": f"scores of {name}", "units_of_field": unit}
        data[ALIASES.get(name, (name,))[0]] = (axes, part, about)
        level = levels or level
    coordinates: dict[str, Any] = {
        "metric": list(METRICS),
        "region": ["global", *regions],
        "lead_time": np.asarray(hours * 60).round().astype("m8[m]").astype("m8[ns]"),
    }
    if level:
        whole = all(float(one).is_integer() for one in level)
        coordinates["level"] = np.array(level, dtype=np.int32 if whole else np.float64)
    return xr.Dataset(data, coordinates)


def as_forecast(forecast: xr.Dataset) -> xr.Dataset:
    """Forecasts of `millrace predict` with the names, axes and times of WeatherBench 2."""
    from millrace.systems.weather.application import FILE_NAMES
    from millrace.systems.weather.units import ALIASES

    names = {FILE_NAMES.get(short, short): known[0] for short, known in ALIASES.items()}
    hours = forecast["lead_time"].values
    made = forecast.drop_vars("valid_time").assign_coords(
        lead_time=np.asarray(hours * 60).round().astype("m8[m]").astype("m8[ns]")
    )
    made["lead_time"].attrs = {"standard_name": "forecast_period", "long_name": "lead time"}
    return made.rename({k: v for k, v in (names | LAYOUT).items() if k in made.variables})


def score(
    model: Any, days: float, stride: int, progress: Progress | None = None
) -> tuple[dict[str, xr.Dataset], dict[str, Any]]:
    """Score a model from all starts of its test period that are ``stride`` steps apart.

    Returns a dataset of `results` for the model and each baseline, and what is told of all of them.
    """
    from millrace.systems.weather.climatology import Climatology
    from millrace.systems.weather.rollout import (
        forecast_from,
        scores_of,
        starts_of,
        true_states,
        valid_times,
    )

    dataset = model.dataset
    starts, leads = starts_of(dataset, "test", days, None, stride)
    scores, times = scores_of(dataset, leads), valid_times(dataset, starts, leads)
    climatology = Climatology(dataset, times.ravel())
    for number, start in enumerate(starts):
        truth = true_states(dataset, int(start), leads)
        forecast = forecast_from(model, int(start), leads)[0]
        scores.add(truth[1:], forecast, truth[0], climatology.at(times[number]))
        if progress is not None:
            progress(number + 1, len(starts))
    positions: dict[str, tuple[list[int], list[float]]] = {}
    for at, name in enumerate(dataset.surface):
        positions[name] = ([at], [])
    first, count = len(dataset.surface), len(dataset.levels)
    for at, name in enumerate(dataset.air):
        begin = first + at * count
        positions[name] = (list(range(begin, begin + count)), dataset.levels.tolist())
    told = {"starts": len(starts), "climatology": climatology.about}
    made = {
        name: results(metrics, list(scores.regions), scores.lead_hours, positions)
        for name, metrics in scores.by_region().items()
    }
    return made, told


def write(
    checkpoint: Path,
    samples: Mapping[str, Path],
    output: Path,
    *,
    days: float = 10.0,
    stride: int = 1,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the files of `score` of a checkpoint to the directory ``output``, and say what they are of.

    ``samples`` is the ``weather.h5`` of the training by its role. Raises `ConfigError` for a model of
    something else, `DataError` for samples of another grid.
    """
    from millrace.evaluation.loaded import load
    from millrace.evaluation.trained_model import TrainedModel

    model = load(checkpoint, device=device)
    if model.recipe["kind"] != "weather":
        raise ConfigError(
            f"{checkpoint}: a model of {model.recipe['kind']}; WeatherBench 2 scores models of weather"
        )
    if set(samples) != {"weather"}:
        raise ConfigError("--samples: expected weather=weather.h5, the samples of the training")
    dataset = model.opened(samples)
    own = model.recipe.get("samples", {}).get("weather", {}).get("values", {})
    for axis in ("latitude", "longitude", "level"):
        if axis in own and not np.array_equal(own[axis], getattr(dataset, _FIELDS[axis])):
            raise DataError(f"{samples['weather']}: {axis} is not that of the training")
    trained = TrainedModel(model.spec, model.module_for(dataset), dataset)
    made, told = score(trained, days, stride, progress)
    output.mkdir(parents=True, exist_ok=True)
    for name, scores in made.items():
        about = {**model.about, "forecast": name, **told}
        with atomic_write(output / f"{name}_deterministic.nc") as partial:
            scores.assign_attrs(about).to_netcdf(partial)
    return {**told, "files": [f"{name}_deterministic.nc" for name in made], "scores": made}


_FIELDS = {"latitude": "latitude", "longitude": "longitude", "level": "levels"}


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from millrace.systems.registry import load_plugins

    options = vars(parser().parse_args(arguments))
    load_plugins(options.pop("plugins"))
    told = write(samples=options.pop("samples") or {}, **options)
    print(f"{options['output']}: {', '.join(told['files'])} of {told['starts']} starts")
    print(f"climatology: {told['climatology']}")
    return ExitCode.OK


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    from millrace.evaluation.predict import add_model_options

    made = make_parser(
        "weatherbench",
        __doc__,
        "--checkpoint epoch_20.ckpt --samples weather=weather.h5 --output scores --stride 2",
    )
    add_model_options(made)
    add = made.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="files of scores")
    add("--days", type=float, default=10.0, metavar="N", help="length of a forecast (default: 10)")
    add("--stride", type=int, default=1, metavar="N", help="steps between starts (default: 1)")
    return made
