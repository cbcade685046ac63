"""Scores and figures of weather forecasts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from millrace.evaluation.base import Draw, Evaluation
from millrace.evaluation.trained_model import TrainedModel
from millrace.figures.style import attempt
from millrace.systems.base import Progress
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.figures import (
    loss_share,
    scorecard,
    weather_by_lead,
    weather_maps,
    zonal_spectra,
)
from millrace.systems.weather.rollout import Example, score_weather
from millrace.systems.weather.scores import wave_numbers
from millrace.systems.weather.units import SI, short_name

# The validation period is for comparison with the test only.
_VALIDATION_DAYS, _VALIDATION_STARTS = 1.0, 8
_LEVELS = (250, 500, 700, 850)
"""Levels (hPa) of the figures by variable, or those nearest; maps are of the second."""
_PRINTED = {"m s**-1": ("m/s", 1.0), "m**2 s**-2": ("m²/s²", 1.0), "kg kg**-1": ("g/kg", 1e3)}


def evaluate(
    model: TrainedModel, files: Mapping[str, Path], progress: Progress | None = None
) -> tuple[dict[str, Any], Draw]:
    """Score forecasts on validation and test period; figures are by variable, and for ``all``.

    See `millrace.evaluation.base.Evaluation`. Scores are those of `score_weather`.
    """
    validation, _ = score_weather(model, "validation", _VALIDATION_DAYS, _VALIDATION_STARTS)
    test, example = score_weather(model, "test", progress=progress)
    scores = {"validation": validation, "test": test, "cases": example.cases}
    return scores, lambda figures: _draw(model.dataset, test, example, figures)


def _draw(
    dataset: WeatherDataset, scores: Mapping[str, Any], example: Example, figures: Path
) -> None:
    groups = channels_of(dataset)
    with attempt(figures / "all/scorecard.png") as path:
        scorecard(scores, groups, path)
    shares = {
        kind: {variable: sum(values[name] for name in groups[variable]) for variable in groups}
        for kind, values in scores["loss_share"].items()
    }
    with attempt(figures / "all/loss_share.png") as path:
        loss_share(shares, dataset.step_hours, path)
    names = list(dataset.variables)
    for variable, channels in groups.items():
        folder, (unit, factor) = figures / variable, printed(variable)
        shown = _shown(dataset, channels)
        with attempt(folder / "by_lead.png") as path:
            weather_by_lead(scores, shown, unit, path, factor)
        at = [names.index(channel) for channel in shown]
        truth, forecasts = (
            dict(zip(shown, factor**2 * np.moveaxis(power_SCM[:, at], 1, 0), strict=True))
            for power_SCM in (example.spectrum_truth_SCM, example.spectrum_forecast_SCM)
        )
        with attempt(folder / "spectra.png") as path:
            waves = wave_numbers(dataset.longitude)
            zonal_spectra(truth, forecasts, example.hours, unit, path, waves)
        mapped = min(1, len(shown) - 1)
        true = factor * example.truth_SCIJ[:, at[mapped]]
        made = factor * example.forecast_SCIJ[:, at[mapped]]
        axes, name = (dataset.latitude, dataset.longitude), (shown[mapped], unit)
        with attempt(folder / "maps.png") as path:
            land = dataset.land()
            weather_maps(true, made, example.hours, axes, name, path, land, example.issued)


def channels_of(dataset: WeatherDataset) -> dict[str, list[str]]:
    """Channels of each variable, from the top of the atmosphere down."""
    in_air = {name: [f"{name}_{level:g}" for level in dataset.levels] for name in dataset.air}
    return {name: [name] for name in dataset.surface} | in_air


def printed(variable: str) -> tuple[str, float]:
    """Unit in which figures show a variable, and the factor to it from that of the scores."""
    unit = SI.get(short_name(variable), "")
    return _PRINTED.get(unit, (unit, 1.0))


def _shown(dataset: WeatherDataset, channels: list[str]) -> list[str]:
    if len(channels) == 1:
        return channels
    nearest = [int(np.argmin(np.abs(dataset.levels - level))) for level in _LEVELS]
    return [channels[at] for at in sorted(set(nearest))]


EVALUATION = Evaluation(evaluate)
