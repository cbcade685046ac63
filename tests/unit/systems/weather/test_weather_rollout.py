"""Forecasts of the weather from many starts: known models have known scores, time advances."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.rollout import loss_shares, score_weather
from millrace.systems.weather.settings import WeatherWindowConfig


class Forecaster(torch.nn.Module):
    """Gives what a function makes of a batch, and notes the times it is asked for."""

    def __init__(self, channels, forecast):
        super().__init__()
        self.register_buffer("loss_weight_C", torch.ones(channels))
        self.forecast, self.hours = forecast, []

    def forward(self, batch):
        self.hours.append(float(batch.hours_B[0]))
        return self.forecast(batch)


def trained(path, forecast, **config):
    dataset = WeatherDataset(path, WeatherWindowConfig(**config))
    spec = SimpleNamespace(predict=lambda module, batch: module(batch))
    return TrainedModel(spec, Forecaster(len(dataset.variables), forecast), dataset)


def stay(batch):
    return batch.last_KBV[:, :, None].expand_as(batch.y_KBTV)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_model_that_stays_is_persistence(weather_samples, steps):
    model = trained(weather_samples, stay, output_steps=steps)
    scores, example = score_weather(model, "test", days=2, starts=3)
    assert scores["lead_hours"] == list(range(6, 49, 6))
    assert scores["starts"] == 3
    for channel in scores["channels"].values():
        assert channel["rmse"]["model"] == pytest.approx(channel["rmse"]["persistence"], rel=1e-5)
        assert channel["rmse"]["persistence"][1] > channel["rmse"]["persistence"][0] > 0
    for channel, errors in example.cases["errors"].items():
        assert errors.keys() == {"rmse_h6", "rmse_h24"}
        for lead, key in ((0, "rmse_h6"), (3, "rmse_h24")):
            together = np.sqrt(np.mean(np.square(errors[key]["values"])))
            assert together == pytest.approx(
                scores["channels"][channel]["rmse"]["model"][lead], 1e-6
            )
    assert example.cases["errors"]["z_500"]["rmse_h6"]["unit"] == "m**2 s**-2"
    issued = np.array(example.cases["names"], dtype="datetime64[m]")
    assert [*np.diff(example.cases["blocks"])] == [*(np.diff(issued) >= np.timedelta64(60, "h"))]
    assert example.hours == (24,)
    [day_later] = np.flatnonzero(np.isclose(model.dataset.time, example.issued + 1))
    state_CK = model.dataset.core_states(0, np.array([day_later]))[:, 0].T.numpy()
    physical_CK = state_CK * model.dataset.std[:, None] + model.dataset.mean[:, None]
    assert example.truth_SCIJ[0].reshape(physical_CK.shape) == pytest.approx(physical_CK, rel=1e-5)
    assert example.truth_SCIJ.shape == (1, 2 + 2 * 3, 16, 32)
    assert example.spectrum_forecast_SCM.shape == (1, 8, 17)


def test_time_advances_with_every_step(weather_samples):
    model = trained(weather_samples, stay)
    score_weather(model, "test", days=1, starts=2)
    first, second = np.split(np.array(model.module.hours), 2)
    assert np.diff(first) == pytest.approx(6)
    start = model.dataset.starts("test")[0]
    assert first[0] == pytest.approx(24 * model.dataset.time[start + 1])
    assert second[0] > first[0]


def test_a_step_gets_the_last_forecast(weather_samples):
    """Each step adds one to all: after four the error is four standard deviations away from staying."""
    model = trained(weather_samples, lambda batch: stay(batch) + 1)
    still = trained(weather_samples, stay)
    scores, _ = score_weather(model, "test", days=1, starts=2)
    other, _ = score_weather(still, "test", days=1, starts=2)
    moved = [
        np.subtract(scores["channels"][name]["bias"], other["channels"][name]["bias"])
        for name in model.dataset.variables
    ]
    expected = model.dataset.std[:, None] * np.arange(1, 5)
    assert np.array(moved) == pytest.approx(expected, rel=1e-4)


def test_climatology_is_the_mean_of_the_training_period(weather_samples):
    dataset = WeatherDataset(weather_samples, WeatherWindowConfig())
    begin, end = dataset.split_ranges[0]
    states = dataset.to_physical(dataset.core_states(0, np.arange(begin, end)))
    expected = np.moveaxis(states.mean(axis=1), -1, 0).reshape(-1, *dataset.shape)
    assert dataset.climatology() == pytest.approx(expected, rel=1e-4)
    land = dataset.land()
    assert set(np.unique(land)) == {0.0, 1.0}


def test_shares_of_the_loss(weather_samples):
    dataset = WeatherDataset(weather_samples, WeatherWindowConfig())
    n = len(dataset.variables)
    error = torch.ones(5, 1, 1, n) * torch.arange(1.0, n + 1)
    weight = torch.linspace(1, 2, n)
    shares = loss_shares(dataset, error, weight)
    by_hand = weight.numpy() * np.arange(1, n + 1)
    assert shares["mae"] == pytest.approx(by_hand / by_hand.sum(), rel=1e-5)
    by_hand = (np.arange(1, n + 1) / dataset.increment_scale) ** 2
    assert shares["mse"] == pytest.approx(by_hand / by_hand.sum(), rel=1e-5)
    geopotential = dataset.variables.index("z_500")
    assert shares["mae_physical"][geopotential] > 20 * shares["mae_physical"][-1]
