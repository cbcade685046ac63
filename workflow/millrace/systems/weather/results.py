"""Scores of a weather model from all starts of its test period, as datasets of WeatherBench 2.

Variables are called as there, along metric, region, lead_time and level. Source:
`weatherbench2/evaluation.py` of github.com/google-research/weatherbench2.

Shape suffixes: M metrics, R regions, L lead times, C channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress
from millrace.systems.weather.application import as_timedelta
from millrace.systems.weather.climatology import Climatology
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.rollout import (
    forecast_from,
    scores_of,
    starts_of,
    true_states,
    valid_times,
)
from millrace.systems.weather.scores import Floats, weights_to_the_poles
from millrace.systems.weather.units import ALIASES, SI, short_name

METRICS = ("mse", "rmse", "mae", "bias", "acc")


def score_all_starts(
    model: TrainedModel, days: float, stride: int, progress: Progress | None = None
) -> tuple[dict[str, xr.Dataset], dict[str, Any]]:
    """Score a model from all starts of its test period that are ``stride`` steps apart.

    Rows of cells reach to the poles as in WeatherBench 2. Returns a dataset for the model and for each
    baseline, and what is told of all of them.
    """
    dataset: WeatherDataset = model.dataset
    starts, leads = starts_of(dataset, "test", days, None, stride)
    scores = scores_of(dataset, leads, weights_to_the_poles(dataset.latitude))
    times = valid_times(dataset, starts, leads)
    climatology = Climatology(dataset, times.ravel())
    for number, start in enumerate(starts):
        truth = true_states(dataset, int(start), leads)
        forecast = forecast_from(model, int(start), leads)[0]
        scores.add(truth[1:], forecast, truth[0], climatology.at(times[number]))
        if progress is not None:
            progress(number + 1, len(starts))
    regions = ["global", *scores.regions]
    made = {
        name: _dataset(dataset, metrics, regions, np.asarray(scores.lead_hours))
        for name, metrics in scores.by_region().items()
    }
    return made, {"starts": len(starts), "climatology": climatology.about}


def _dataset(
    dataset: WeatherDataset, metrics: Mapping[str, Floats], regions: Sequence[str], hours: Floats
) -> xr.Dataset:
    """Metrics of one forecast, each [L, C, R], by variable."""
    values_MRLC = np.array([np.moveaxis(metrics[name], 2, 0) for name in METRICS])
    first, data = 0, {}
    levels: Any = dataset.levels
    if (levels == np.rint(levels)).all():
        levels = levels.astype(np.int32)
    for role, names in (("surface", dataset.surface), ("air", dataset.air)):
        for name in names:
            count = len(levels) if role == "air" else 1
            part = values_MRLC[..., first : first + count]
            axes = ["metric", "region", "lead_time", *(["level"] if role == "air" else [])]
            of = {"field_units": SI.get(short_name(name), "1").replace("**", "")}
            known = ALIASES.get(short_name(name), (name,))[0]
            data[known] = (axes, part if role == "air" else part[..., 0], of)
            first += count
    coordinates = {
        "metric": list(METRICS),
        "region": list(regions),
        "lead_time": as_timedelta(hours),
    }
    return xr.Dataset(data, coordinates | ({"level": levels} if dataset.air else {}))
