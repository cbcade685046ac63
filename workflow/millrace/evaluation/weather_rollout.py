"""Forecasts of the weather from many starts, each fed on its own output, and their scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from millrace.data.weather_view import WeatherView
from millrace.data.window_view import Split
from millrace.evaluation.forecast import TrainedModel
from millrace.evaluation.weather import WeatherScores, zonal_spectrum
from millrace.models.aurora.loss import channel_weights, shares

Floats = NDArray[np.float64]

DAYS = 5.0


@dataclass(frozen=True)
class Example:
    """Forecast and truth of one start, for maps and spectra, in physical units."""

    hours: Floats
    """Lead times."""
    truth_LCIJ: Floats
    forecast_LCIJ: Floats
    spectrum_truth_LCM: Floats
    """Power by zonal wave number."""
    spectrum_forecast_LCM: Floats


def score_weather(
    model: TrainedModel,
    split: Split,
    days: float = DAYS,
    starts: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], Example]:
    """Score forecasts up to ``days`` ahead from starts spread evenly over a split.

    Returns
    -------
    scores : dict
        `WeatherScores.result`, and ``loss_share``: what each channel adds to the loss of the first step.
    example : Example
        The forecast in the middle.
    """
    view: WeatherView = model.view
    past, step = view.config.input_steps, view.step_hours
    every = view.starts(split)
    longest = int(every[-1]) + view.config.length - past - int(every[0])
    leads = max(1, min(int(days * 24 / step), longest))
    last = int(every[-1]) + view.config.length - past - leads
    chosen = np.unique(np.linspace(every[0], max(every[0], last), starts).astype(int))
    names = view.config.variables
    hours = step * np.arange(1, leads + 1)
    scores = WeatherScores(names, hours, view.latitude, climatology(view))
    share: dict[str, float] = dict.fromkeys(names, 0.0)
    middle = len(chosen) // 2
    for number, start in enumerate(chosen):
        truth = _physical(view, np.arange(start + past - 1, start + past + leads))
        forecast, first = _forecast(model, int(start), leads)
        scores.add(truth[1:], forecast, truth[0])
        for name, value in first.items():
            share[name] += value / len(chosen)
        if number == middle:
            example = Example(
                hours,
                truth[1:],
                forecast,
                zonal_spectrum(truth[1:], view.latitude),
                zonal_spectrum(forecast, view.latitude),
            )
        if progress is not None:
            progress(number + 1, len(chosen))
    return {**scores.result(), "loss_share": share}, example


def climatology(view: WeatherView) -> Floats:
    """Mean state of the training period, [C, I, J], in physical units."""
    begin, end = view._split[0]
    total = sum(
        _physical(view, np.array([step])).sum(axis=0) for step in range(int(begin), int(end))
    )
    return np.asarray(total) / (end - begin)


@torch.no_grad()
def _forecast(model: TrainedModel, start: int, leads: int) -> tuple[Floats, dict[str, float]]:
    """Forecast [L, C, I, J] in physical units, and the shares of the first step's loss."""
    view: WeatherView = model.view
    states_KBSV = view.core_states(0, np.arange(start, start + view.config.input_steps)[None])
    forecasts: list[torch.Tensor] = []
    share: dict[str, float] = {}
    for step in range(0, leads, view.config.output_steps):
        batch = view.at_times(0, np.array([min(start + step, len(view.time) - view.config.length)]))
        hours = view.time[start + view.config.input_steps - 1] * 24.0 + step * view.step_hours
        batch = view.with_states(batch, states_KBSV[:, :, -view.config.input_steps :])
        batch.hours_B.fill_(hours)
        next_KBTV = model(batch)
        if not forecasts:
            share = _shares(view, next_KBTV, batch.y_KBTV)
        forecasts.append(next_KBTV)
        states_KBSV = torch.cat([states_KBSV, next_KBTV], dim=2)
    values_KLC = torch.cat(forecasts, dim=2)[:, 0, :leads]
    physical = np.moveaxis(view.to_physical(values_KLC), 0, -1)
    return physical.reshape(*physical.shape[:2], *view.shape), share


def _shares(view: WeatherView, forecast: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    weight = channel_weights(view.surface, view.air, len(view.levels), "pretraining").to(
        view.device
    )
    one, other = (x.permute(1, 2, 3, 0).unflatten(3, view.shape) for x in (forecast, truth))
    return shares(one, other, weight, view.config.variables)


def _physical(view: WeatherView, steps: NDArray[np.int64]) -> Floats:
    """States at time indices in physical units, [T, C, I, J]."""
    values = np.moveaxis(view.to_physical(view.core_states(0, steps)), 0, -1)
    return values.reshape(*values.shape[:2], *view.shape)
