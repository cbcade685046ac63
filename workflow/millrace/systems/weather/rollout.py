"""Forecasts of the weather from many starts, each fed on its own output, and their scores.

Shape suffixes: L lead times, S those that are shown, C channels, I latitudes, J longitudes, M wave numbers,
K cells, B samples, T steps, V channels as the last axis.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace.data.split import Split
from millrace.evaluation.cases import blocks_in_time, case_record, issue_times
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress
from millrace.systems.weather.climatology import Climatology
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.regions import cells_of_regions
from millrace.systems.weather.scores import Floats, WeatherScores, zonal_spectrum
from millrace.systems.weather.units import SI, short_name

DAYS = 5.0
CASE_HOURS = (6, 24, 72, 120)
"""Lead times of the errors of each start."""
SHOWN_HOURS = (24, 72, 120)
"""Lead times of maps and spectra, as far as they are forecast."""


@dataclass(frozen=True)
class Example:
    """What figures show, at some lead times and in physical units, and errors by case."""

    hours: tuple[float, ...]
    issued: float
    """Time of the last given state of the start in the middle of the period, days since 1970."""
    truth_SCIJ: NDArray[np.float32]
    """Of this start."""
    forecast_SCIJ: NDArray[np.float32]
    spectrum_truth_SCM: Floats
    """Power by zonal wave number, mean over all starts."""
    spectrum_forecast_SCM: Floats
    cases: dict[str, Any]
    """Errors of each start, see `millrace.evaluation.cases`: starts whose forecasts overlap are in one
    block."""


def starts_of(
    dataset: WeatherDataset, split: Split, days: float, starts: int | None, stride: int = 1
) -> tuple[NDArray[np.int64], int]:
    """First states of forecasts up to ``days`` ahead within a split, and the steps that are forecast.

    They are spread evenly over it, ``starts`` of them, or, for None, all that are ``stride`` steps apart.
    """
    every, past = dataset.starts(split), dataset.config.input_steps
    end = int(every[-1]) + dataset.config.length - past
    leads = max(1, min(int(days * 24 / dataset.step_hours), end - int(every[0])))
    last = max(int(every[0]), end - leads)
    if starts is None:
        return np.arange(every[0], last + 1, stride), leads
    return np.unique(np.linspace(every[0], last, starts).astype(int)), leads


def scores_of(dataset: WeatherDataset, leads: int, weight_I: Floats | None = None) -> WeatherScores:
    """Scores without any forecast yet."""
    return WeatherScores(
        dataset.variables,
        dataset.step_hours * np.arange(1, leads + 1, dtype=np.float64),
        dataset.latitude,
        dataset.climatology(),
        cells_of_regions(dataset.latitude, dataset.longitude),
        weight_I,
    )


def valid_times(
    dataset: WeatherDataset, starts: NDArray[np.int64], leads: int
) -> NDArray[np.float64]:
    """Times of all steps that are forecast, [S, L], days since 1970."""
    first = np.asarray(starts) + dataset.config.input_steps
    return np.asarray(dataset.time[first[:, None] + np.arange(leads)])


def score_weather(
    model: TrainedModel,
    split: Split,
    days: float = DAYS,
    starts: int | None = 16,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Example]:
    """Score forecasts up to ``days`` ahead from starts spread evenly over a split.

    Scores are those of `WeatherScores.result`; ``climatology`` says what it is the mean of, and
    ``loss_share`` what each channel adds to the loss of the first step, see `loss_shares`.
    """
    dataset: WeatherDataset = model.dataset
    past, names = dataset.config.input_steps, dataset.variables
    chosen, leads = starts_of(dataset, split, days, starts)
    hours = dataset.step_hours * np.arange(1, leads + 1)
    shown = np.flatnonzero(np.isin(hours, SHOWN_HOURS))
    shown = shown if len(shown) else np.array([leads - 1])
    scores, times = scores_of(dataset, leads), valid_times(dataset, chosen, leads)
    climatology = Climatology(dataset, times.ravel())
    shares: list[dict[str, Floats]] = []
    spectra: list[list[Floats]] = []
    for number, start in enumerate(chosen):
        truth = true_states(dataset, int(start), leads)
        forecast, share = forecast_from(model, int(start), leads)
        scores.add(truth[1:], forecast, truth[0], climatology.at(times[number]))
        pair = (truth[1:][shown], forecast[shown])
        shares.append(share)
        axes = (dataset.latitude, dataset.longitude)
        spectra.append([zonal_spectrum(fields, *axes) for fields in pair])
        if number == len(chosen) // 2:
            fields = [field.astype(np.float32) for field in pair]
            issued = float(dataset.time[start + past - 1])
        if progress is not None:
            progress(number + 1, len(chosen))
    mean = {kind: np.mean([one[kind] for one in shares], axis=0).tolist() for kind in shares[0]}
    by_name = {kind: dict(zip(names, values, strict=True)) for kind, values in mean.items()}
    truth_SCM, forecast_SCM = (np.mean(one, axis=0) for one in zip(*spectra, strict=True))
    issued_S = dataset.time[chosen + past - 1]
    units = {name: SI.get(short_name(name.partition("_")[0]), "") for name in names}
    errors = {
        channel: {key: (units[channel], values) for key, values in of_channel.items()}
        for channel, of_channel in scores.by_start(CASE_HOURS).items()
    }
    span = (past + leads) * dataset.step_hours / 24
    cases = case_record(issue_times(issued_S), blocks_in_time(issued_S, span), errors)
    example = Example(
        tuple(hours[shown].tolist()), issued, fields[0], fields[1], truth_SCM, forecast_SCM, cases
    )
    about = {"climatology": climatology.about, "loss_share": by_name}
    return {**scores.result(), **about}, example


def true_states(dataset: WeatherDataset, start: int, leads: int) -> Floats:
    """The last given state of a start and those to forecast, in physical units, [1 + L, C, I, J]."""
    issued = start + dataset.config.input_steps - 1
    return _physical(dataset, dataset.core_states(0, np.arange(issued, issued + leads + 1)))


@torch.no_grad()
def forecast_from(model: TrainedModel, start: int, leads: int) -> tuple[Floats, dict[str, Floats]]:
    """Forecast [L, C, I, J] in physical units, and the shares of the first step's loss."""
    dataset: WeatherDataset = model.dataset
    past, ahead = dataset.config.input_steps, dataset.config.output_steps
    states_KBSV = dataset.core_states(0, np.arange(start, start + past)[None])
    forecast_KTV = rolled_out(model, states_KBSV, float(dataset.time[start + past - 1]), leads)
    truth_KTV = dataset.core_states(0, start + past + np.arange(min(ahead, leads)))
    weight_V = model.module.get_buffer("loss_weight_C").to(forecast_KTV)
    error_KTV = forecast_KTV[:, : truth_KTV.shape[1]] - truth_KTV
    share = loss_shares(dataset, error_KTV[:, None], weight_V)
    return _physical(dataset, forecast_KTV), share


@torch.no_grad()
def rolled_out(model: TrainedModel, past_KBTV: Tensor, issued: float, leads: int) -> Tensor:
    """Forecast that feeds on itself from the states of one start, normalised, [K, L, V].

    ``issued`` is the time of the last given state, days since 1970.
    """
    dataset: WeatherDataset = model.dataset
    ahead, forecasts = dataset.config.output_steps, list[Tensor]()
    for step in range(0, leads, ahead):
        batch = dataset.of_states(past_KBTV, issued * 24.0 + step * dataset.step_hours)
        forecasts.append(model(batch))
        past_KBTV = torch.cat([past_KBTV, forecasts[-1]], dim=2)[:, :, -past_KBTV.shape[2] :]
    return torch.cat(forecasts, dim=2)[:, 0, :leads]


def loss_shares(dataset: WeatherDataset, error_KBTV: Tensor, weight_V: Tensor) -> dict[str, Floats]:
    """What each channel adds to a loss, [V] adding up to 1, by loss.

    ``mae`` and ``mse`` are those of ``train.loss.kind``. ``mae_physical`` is the weighted absolute error
    of fields that are not normalised: whatever has the largest numbers is most of it.
    """
    absolute_V = error_KBTV.double().abs().mean(dim=(0, 1, 2)).cpu().numpy()
    square_V = error_KBTV.double().square().mean(dim=(0, 1, 2)).cpu().numpy()
    weight = weight_V.double().cpu().numpy()
    parts: Mapping[str, Floats] = {
        "mae": weight * absolute_V,
        "mse": square_V / dataset.increment_scale**2,
        "mae_physical": weight * absolute_V * dataset.std,
    }
    return {kind: values / values.sum() for kind, values in parts.items()}


def _physical(dataset: WeatherDataset, states_KTV: Tensor) -> Floats:
    """Normalised states in physical units, [T, C, I, J]."""
    values = np.moveaxis(dataset.to_physical(states_KTV), 0, -1)
    return values.reshape(*values.shape[:2], *dataset.shape)
