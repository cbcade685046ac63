"""What all samples in time share: splits, starts of windows, batches of a group, a cache.

Shape suffixes: B samples, K core points, T steps, V variables, W windows, G groups.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from millrace.data.device import to_device
from millrace.data.normalisation import Normalisation
from millrace.data.shared import shared, shared_in_group, tensors_in
from millrace.data.split import SPLITS, Split
from millrace.errors import ConfigError

CACHE_BYTES = 8 << 30
"""Size of the cache beyond which the least recently used groups are dropped."""


class WindowDataset(ABC):
    """Windows in time over groups of points (patches, planes) that each have a geometry of their own.

    ``source`` is the file, for error messages; ``config`` says what a sample holds: ``variables``,
    ``input_steps``, ``output_steps``, ``stride``, ``length``. ``time`` are the times of the steps in days,
    float64[T], and ``split`` the ranges of the splits, int64[3, 2]. With ``is_foreign`` the statistics are
    those of other data: the model is not trained on these samples, and the gap between splits may be
    shorter than a window. Batches are made on ``device``, where groups stay once read, up to `CACHE_BYTES`.

    Raises `ConfigError` if a window is longer than the gap between the splits, so that it could overlap two
    of them.
    """

    digest: str
    """Hash of the data."""
    core_nodes: list[np.ndarray]
    """Points of each group that are predicted, numbered over all groups."""
    ghost_nodes: list[np.ndarray]
    """Points of each group that are predicted as core points of other groups."""
    group_of_ranks: str | None = None
    """Name of the ranks that take the same samples as this one, on this node; None: no others do."""
    weighted_variable: str | None = None
    """Variable whose errors ``train.loss.variance_weight`` weights; None: there is no such variable."""

    def __init__(
        self,
        source: Path,
        config: Any,
        time: np.ndarray,
        split: np.ndarray,
        normalisation: Normalisation,
        is_foreign: bool,
        device: torch.device | None,
        cache_bytes: int,
    ) -> None:
        self.config, self.time, self.split_ranges = config, time, split
        self.device = device or torch.device("cpu")
        self.normalisation = normalisation
        self.mean, self.std = normalisation.mean_V, normalisation.std_V
        self.increment_scale = normalisation.increment_std_V / self.std
        self._scale_V = self._tensor(self.increment_scale)
        self.groups_in_memory: OrderedDict[int, Any] = OrderedDict()
        self._cache_bytes = cache_bytes
        gap = int((split[1:, 0] - split[:-1, 1]).min())
        if not is_foreign and config.length > gap + 1:
            raise ConfigError(
                f"data.input_steps + data.output_steps = {config.length}, but the splits of {source} "
                f"are {gap} steps apart: set split.gap of the dataset to at least {config.length}"
            )

    @property
    def definition(self) -> dict[str, object]:
        """Definition of the samples, which is part of the run hash."""
        return {"digest": self.digest, **self.config.essentials()}

    def starts(self, split: Split) -> np.ndarray:
        """Time indices at which the windows of a split begin, int64[W]."""
        begin, end = self.split_ranges[SPLITS.index(split)]
        stride = self.config.stride if split == "train" else 1
        starts = np.arange(begin, end - self.config.length + 1, stride)
        if not len(starts):
            raise ConfigError(
                f"split {split!r} has {end - begin} steps, fewer than one window of "
                f"{self.config.length}: give the dataset more time or shorten the window"
            )
        return starts

    def contains(self, split: Split, starts: np.ndarray) -> np.ndarray:
        """Whether windows that begin at the given time indices, int64[B], lie within a split, bool[B]."""
        begin, end = self.split_ranges[SPLITS.index(split)]
        return (begin <= starts) & (starts + self.config.length <= end)

    def groups(self, split: Split) -> np.ndarray:
        """Number of windows of each group, int64[G]."""
        return np.full(len(self.core_nodes), len(self.starts(split)))

    @property
    def group_costs(self) -> np.ndarray:
        """Number of points of each group, int64[G], to which the cost of a window is proportional."""
        return np.array([*map(len, self.core_nodes)]) + np.array([*map(len, self.ghost_nodes)])

    def batch(
        self, split: Split, group: int, index: np.ndarray, weight: Sequence[float] | None = None
    ) -> Any:
        """Gather windows ``index``, int64[B], of a group and split, with weights, 1 each by default."""
        batch = self.at_times(group, self.starts(split)[index])
        if weight is None:
            return batch
        return replace(batch, weight_B=self._tensor(np.asarray(weight)))

    def member(self, group: int) -> tuple["WindowDataset", int]:
        """Return the dataset of a group and its number there, see `millrace.data.joint.JointDataset`."""
        return self, group

    @abstractmethod
    def at_times(self, group: int, starts: np.ndarray) -> Any:
        """Gather windows of a group that begin at the given time indices, int64[B], in whatever split."""

    @abstractmethod
    def with_states(self, batch: Any, past: Tensor) -> Any:
        """Replace the past states of a batch, for autoregressive forecasts."""

    @abstractmethod
    def core_states(self, group: int, steps: np.ndarray) -> Tensor:
        """States of a group's core points at time indices of any shape S, [K, *S, V]."""

    def to_physical(self, values: Tensor) -> np.ndarray:
        """Undo the normalisation of an array whose last axis is V."""
        return values.double().cpu().numpy() * self.std + self.mean

    @abstractmethod
    def _read(self, group: int) -> Any:
        """Read a group: a dataclass of tensors on the device, and its geometry."""

    def _series(self, group: int) -> Any:
        """Time series of a group, which is read when it is used first."""
        if group in self.groups_in_memory:
            self.groups_in_memory.move_to_end(group)
        else:
            self.groups_in_memory[group] = self._shared(group)
            while len(self.groups_in_memory) > 1 and self._cached_bytes() > self._cache_bytes:
                self.groups_in_memory.popitem(last=False)
        return self.groups_in_memory[group]

    def _shared(self, group: int) -> Any:
        """A group, of which ranks of a node that compute on its CPUs have one copy."""
        if self.device.type != "cpu":
            return self._read(group)
        return shared(self._key(group), lambda: self._read(group))

    def _once_for_ranks(self, key: Any, read: Callable[[], Tensor]) -> Tensor:
        """What is read for a batch, by one of the ranks of a node that take it; a tensor on the CPU."""
        if self.group_of_ranks is None:
            return read()
        return shared_in_group(self._key(key), read, self.group_of_ranks)

    def _key(self, key: Any) -> list[Any]:
        """Plain values on which samples depend, ``key`` included."""
        statistics = self.normalisation.to_json()
        return [type(self).__qualname__, self.definition, statistics, key]

    def _cached_bytes(self) -> int:
        return sum(x.nbytes for x in tensors_in(self.groups_in_memory))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return to_device(array, self.device, np.float32)
