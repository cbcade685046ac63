"""One step of a model of weather as a program, see `millrace.evaluation.program`.

Shape suffixes: B samples, T past steps, C channels, I x J cells.
"""

import numpy as np
import torch
from torch import Tensor, nn

from millrace.evaluation.program import BATCH, Program, Scaling, Value
from millrace.evaluation.trained_model import TrainedModel, finite
from millrace.systems.weather.dataset import WeatherBatch, WeatherDataset
from millrace.systems.weather.units import SI

_HOURS = 24.0


class WeatherProgram(nn.Module):
    """From the given states and the time of the last one (days since 1970) to the next state."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        dataset: WeatherDataset = model.dataset
        self.net, self._predict = model.module, model.spec.predict
        self.states = Scaling(dataset.mean, dataset.std, inner=2)

    def forward(self, states_BTCIJ: Tensor, time_B: Tensor) -> Tensor:
        """The state of the next step, [B, C, I, J]."""
        past_BTCIJ = self.states.normalised(states_BTCIJ)
        nothing_BKCIJ = torch.zeros_like(past_BTCIJ[:, :1])
        scale_V = past_BTCIJ.new_ones(past_BTCIJ.shape[2])
        weight_B = past_BTCIJ.new_ones(past_BTCIJ.shape[0])
        hours_B = time_B.double() * _HOURS
        batch = WeatherBatch(past_BTCIJ, hours_B, nothing_BKCIJ, scale_V, weight_B)
        next_KBV = self._predict(self.net, batch)[:, :, 0]
        next_BCIJ = next_KBV.permute(1, 2, 0).unflatten(2, states_BTCIJ.shape[3:])
        return self.states.physical(next_BCIJ)


def weather_program(model: TrainedModel) -> Program:
    """Program of a model of weather, and examples from its samples."""
    dataset: WeatherDataset = model.dataset
    past = dataset.config.input_steps
    starts = np.arange(2)
    given_KBTV = dataset.core_states(0, starts[:, None] + np.arange(past))
    states = torch.from_numpy(dataset.to_physical(given_KBTV)).permute(1, 2, 3, 0)
    states = states.unflatten(3, dataset.shape).float().to(dataset.device)
    time = torch.from_numpy(dataset.time[starts + past - 1]).double().to(dataset.device)
    batch = dataset.at_times(0, starts)
    expected_KBV = finite(model(batch))[:, :, 0]
    expected = torch.from_numpy(dataset.to_physical(expected_KBV)).permute(1, 2, 0)
    units = dict(zip(dataset.variables, _units(dataset), strict=True))
    fields = ("channel", "latitude", "longitude")
    hours = dataset.step_hours
    return Program(
        WeatherProgram(model).to(dataset.device),
        inputs=[
            Value("states", states, (BATCH, "time", *fields), units,
                  f"states {hours:g} h apart, the latest last"),
            Value("time", time, (BATCH,), "days since 1970-01-01 00:00:00", "of the last given state"),
        ],
        outputs=[
            Value("forecast", expected.unflatten(2, dataset.shape).float().to(dataset.device),
                  (BATCH, *fields), units, f"the state {hours:g} h after the last given one"),
        ],
        own=lambda: model(batch),
        labels={
            "channel": dataset.variables,
            "latitude": [f"{value:g}" for value in dataset.latitude],
            "longitude": [f"{value:g}" for value in dataset.longitude],
        },
        notes=[
            "One step: for a longer forecast append it to the states, drop the first of them, add "
            f"{hours:g} hours to the time and call the program again."
        ],
    )  # fmt: skip


def _units(dataset: WeatherDataset) -> list[str]:
    """Unit of each channel: surface variables, then each variable of the air level by level."""
    names = [*dataset.surface, *(name for name in dataset.air for _ in dataset.levels)]
    return [SI.get(name, "1").replace("**", "") for name in names]
