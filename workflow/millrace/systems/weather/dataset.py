"""Windows in time over states of the atmosphere: the samples that Aurora trains on.

Everything is normalised with statistics of the training period, channel by channel. The whole globe is one
group of cells. States are read when a batch asks for them; those of a small file stay in memory.

Shape suffixes: T times, B samples, K cells, S steps, C channels (also V), F static fields, I x J cells.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from millrace.data.device import to_device
from millrace.data.hdf5 import open_checked, reading
from millrace.data.normalisation import Normalisation
from millrace.data.recipe import Outline
from millrace.data.window_dataset import CACHE_BYTES, WindowDataset
from millrace.systems.weather.settings import WeatherWindowConfig
from millrace.systems.weather.units import SCHEMA


@dataclass(frozen=True)
class WeatherBatch:
    """Windows, normalised."""

    past_BTCIJ: Tensor
    hours_B: Tensor
    """Time of the last given state, hours since 1970, float64."""
    y_BKCIJ: Tensor
    """States to forecast, K of them."""
    scale_V: Tensor
    """Typical one-step change of each channel."""
    weight_B: Tensor
    """1 for a sample that counts, 0 for one that only keeps the ranks in step."""

    @property
    def steps(self) -> int:
        """States to forecast."""
        return self.y_BKCIJ.shape[1]

    @property
    def y_KBTV(self) -> Tensor:
        """States to forecast as values at cells."""
        return as_points(self.y_BKCIJ)

    @property
    def last_KBV(self) -> Tensor:
        """Last given state: the persistence forecast."""
        return self.past_BTCIJ[:, -1].flatten(2).permute(2, 0, 1)

    @property
    def variance_weight_KV(self) -> Tensor:
        """No cell counts more than another."""
        cells = self.past_BTCIJ[0, 0, 0].numel()
        return self.scale_V.new_ones(cells, len(self.scale_V))

    def __len__(self) -> int:
        return len(self.weight_B)


def as_points(states_BKCIJ: Tensor) -> Tensor:
    """Fields as values at cells, [I * J, B, K, C]."""
    return states_BKCIJ.flatten(3).permute(3, 0, 1, 2)


# DDP looks for the tensors of a batch in order to follow the graph of autograd.
torch.utils._pytree.register_dataclass(WeatherBatch)


@dataclass(frozen=True)
class _States:
    """All states of a small file."""

    state_TCIJ: Tensor


class WeatherDataset(WindowDataset):
    """Windows of ``weather.h5``, the file of the rule ``extract_samples``; batches are made on ``device``.

    States may be in the raw files that it refers to, see `millrace.systems.weather.in_place`. If they are
    larger than ``cache_bytes``, they are read batch by batch. ``statistics`` are those of the data that a
    model was trained on.
    """

    config_type = WeatherWindowConfig
    roles = ("weather",)

    def __init__(
        self,
        weather: Path,
        config: WeatherWindowConfig,
        device: torch.device | None = None,
        cache_bytes: int = CACHE_BYTES,
        statistics: Normalisation | None = None,
    ) -> None:
        self._path = Path(weather)
        self._file: h5py.File | None = None
        with open_checked(self._path, SCHEMA) as file:
            attributes = dict(file.attrs)
            names = tuple(attributes["channels"])
            self.surface, self.air = tuple(attributes["surface"]), tuple(attributes["air"])
            axes: list[np.ndarray] = [file[name][()] for name in ("level", "latitude", "longitude")]
            self.levels, self.latitude, self.longitude = axes
            static_FIJ = file["static"][()].astype(np.float64)
            self.static_names = tuple(map(str, attributes["static"]))
            time, split = file["time"][()], file["split"][()]
            stats = {name: file["stats"][name][()] for name in file["stats"]}
            check = file["check"][()] if "reference" in attributes else None
        self._small = 4 * len(time) * len(names) * math.prod(self.shape) <= cache_bytes
        self._in_place: Any = None
        if check is not None:
            # Only here: copies need nothing that reads raw files.
            from millrace.systems.weather.in_place import StatesInPlace

            self._in_place = StatesInPlace(attributes, time, check)
        self.variables = names
        """Names of the channels."""
        self.step_hours, self.digest = float(attributes["hours"]), str(attributes["digest"])
        self.static_mean, self.static_std = _statistics(static_FIJ)
        self.static = (
            (static_FIJ - _columns(self.static_mean)) / _columns(self.static_std)
        ).astype(np.float32)
        self.preparation = {"weather": json.loads(attributes["config"])}
        """How the states were taken from raw files."""
        normalisation = statistics or Normalisation(
            variables=names,
            mean_V=stats["mean"],
            std_V=stats["std"],
            increment_std_V=stats["increment_std"],
            forcings=(),
            forcing_mean_F=np.empty(0),
            forcing_std_F=np.empty(0),
            low_D=np.array([-90.0, 0.0]),
            high_D=np.array([90.0, 360.0]),
        )
        self.core_nodes = [np.arange(len(self.latitude) * len(self.longitude))]
        self.ghost_nodes = [np.empty(0, dtype=np.int64)]
        is_foreign = statistics is not None
        super().__init__(
            self._path, config, time, split, normalisation, is_foreign, device, cache_bytes
        )

    def recipe(self) -> dict[str, Outline]:
        """What is needed to make samples of named arrays, see `millrace.data.recipe`."""
        without = ("climatology", "check")
        return {"weather": Outline(self._path, ("state", "time"), without)}

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return len(self.latitude), len(self.longitude)

    def at_times(self, group: int, starts: np.ndarray) -> WeatherBatch:
        """Windows that begin at the given time indices, whatever their split."""
        starts, past = np.asarray(starts), self.config.input_steps
        state_BSCIJ = self._states(starts[:, None] + np.arange(self.config.length))
        hours_B = to_device(self.time[starts + past - 1] * 24.0, self.device)
        weight_B = torch.ones(len(starts), device=self.device)
        past_BTCIJ, y_BKCIJ = state_BSCIJ[:, :past], state_BSCIJ[:, past:]
        return WeatherBatch(past_BTCIJ, hours_B, y_BKCIJ, self._scale_V, weight_B)

    def of_states(self, past_KBTV: Tensor, hours: float) -> WeatherBatch:
        """Windows of given states, the last of which are of a time (h since 1970); none are to forecast."""
        n_samples = past_KBTV.shape[1]
        past_BTCIJ = past_KBTV.permute(1, 2, 3, 0).unflatten(3, self.shape)
        hours_B = torch.full((n_samples,), hours, dtype=torch.float64, device=self.device)
        y_BKCIJ = past_BTCIJ.new_zeros(n_samples, self.config.output_steps, *past_BTCIJ.shape[2:])
        weight_B = torch.ones(n_samples, device=self.device)
        return WeatherBatch(past_BTCIJ, hours_B, y_BKCIJ, self._scale_V, weight_B)

    def climatology(self) -> np.ndarray:
        """Mean state of the file's training period, float64[C, I, J], in physical units."""
        with open_checked(self._path, SCHEMA) as file:
            return np.asarray(file["climatology"][()], dtype=np.float64)

    def land(self) -> np.ndarray | None:
        """Share of land, float64[I, J], if the mask ``lsm`` is among the static fields."""
        with open_checked(self._path, SCHEMA) as file:
            names = list(file.attrs["static"])
            return file["static"][names.index("lsm")] if "lsm" in names else None

    def with_states(self, batch: WeatherBatch, past_KBTV: Tensor) -> WeatherBatch:
        """Replace the past states of a batch, for forecasts that feed on their own output."""
        past_BTCIJ = past_KBTV.permute(1, 2, 3, 0).unflatten(3, self.shape)
        return replace(batch, past_BTCIJ=past_BTCIJ)

    def replace_past(self, batch: WeatherBatch, rows: np.ndarray, past_RTCIJ: Tensor) -> None:
        """Replace the past states of the samples ``rows``, int64[R], in a batch of `at_times`."""
        batch.past_BTCIJ[to_device(rows, self.device)] = to_device(past_RTCIJ, self.device)

    def core_states(self, group: int, steps: np.ndarray) -> Tensor:
        """States of all cells at time indices of any shape S, [K, *S, V]."""
        steps = np.asarray(steps)
        state_SCK = self._states(steps.ravel()).flatten(2)
        return state_SCK.permute(2, 0, 1).unflatten(1, steps.shape)

    def _states(self, steps: np.ndarray) -> Tensor:
        """Normalised states at time indices of any shape S, [*S, C, I, J]."""
        if self._small:
            index = to_device(steps, self.device)
            return self._series(0).state_TCIJ[index]
        unique, back = np.unique(steps, return_inverse=True)
        values = self._once_for_ranks(unique.tolist(), lambda: self._read_states(unique))
        return to_device(values, self.device)[to_device(back.reshape(steps.shape), self.device)]

    def _read_states(self, steps: np.ndarray) -> Tensor:
        if self._in_place is not None:
            return self._normalised_states(self._in_place, steps)
        with reading(self._path):
            if self._file is None:
                self._file = h5py.File(self._path, "r")
            return self._normalised_states(self._file["state"], steps)

    def _read(self, group: int) -> _States:
        every = np.arange(len(self.time))
        if self._in_place is not None:
            states = self._normalised_states(self._in_place, every)
        else:
            with open_checked(self._path, SCHEMA) as file:
                states = self._normalised_states(file["state"], every)
        return _States(to_device(states, self.device))

    def _normalised_states(self, data: Any, steps: np.ndarray) -> Tensor:
        """On the CPU."""
        result = np.empty((len(steps), len(self.mean), *self.shape), dtype=np.float32)
        mean, std = self.mean[:, None, None], self.std[:, None, None]
        for slot, step in enumerate(steps):
            result[slot] = (data[int(step)] - mean) / std
        return torch.from_numpy(result)


def _statistics(static_FIJ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each field, [F]."""
    if not len(static_FIJ):
        return np.empty(0), np.empty(0)
    return static_FIJ.mean(axis=(1, 2)), np.maximum(static_FIJ.std(axis=(1, 2)), 1e-12)


def _columns(values_F: np.ndarray) -> np.ndarray:
    return values_F[:, None, None]
