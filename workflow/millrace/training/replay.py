"""Training on the model's own forecasts: the pushforward trick with a replay buffer.

In a rollout the errors of a model are part of its input. Here some of the samples start from a state that
the model forecast earlier in training, and its forecasts for them are kept in turn, up to a longest lead
time. Gradients pass through one forecast only, so that long leads cost no more than short ones.

Pushforward trick: Brandstetter, Worrall & Welling 2022 (arXiv:2202.03376); the buffer: Bodnar et al. 2025
(Nature 641). A forecast in the buffer was made with older weights than those that continue from it.

The buffer belongs to positions in the global batch, not to ranks. What it holds, and what is drawn from it,
depends on (seed, step, position) alone: it is the same with any number of ranks, and after any stop.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from millrace.data.device import to_device
from millrace.training.batches import RankShare, owners
from millrace.training.config import ReplayConfig

_KEY = zlib.crc32(b"replay")


class Windows(Protocol):
    """Samples in time whose past can be replaced."""

    config: Any
    """With ``output_steps``."""

    def starts(self, split: Any) -> np.ndarray:
        """See `millrace.data.window_dataset.WindowDataset.starts`."""

    def contains(self, split: Any, starts: np.ndarray) -> np.ndarray:
        """See `millrace.data.window_dataset.WindowDataset.contains`."""

    def at_times(self, group: int, starts: np.ndarray) -> Any:
        """Gather windows that begin at the given time indices, int64[B]."""

    def with_past(self, batch: Any, rows: np.ndarray, past: Tensor) -> Any:
        """Replace the past of the samples ``rows``, int64[R], by [R, ...]."""


@dataclass(frozen=True)
class Entry:
    """A forecast to start from."""

    start: int
    """Time index at which its window begins."""
    lead: int
    """Lead time of its last state, in states from the data."""
    past: Tensor
    """States of the window, on the CPU."""


@dataclass(frozen=True)
class Draw:
    """Where the samples of a batch come from, and where their forecasts are kept."""

    key: list[tuple[int, int, int]]
    """(group, position in the global batch, slot of the buffer) of each sample."""
    start: np.ndarray
    """Time indices at which the windows begin, int64[B]."""
    lead: np.ndarray
    """Lead times of their last past states, int64[B]; 0 for data."""
    counts: np.ndarray
    """Whether a sample counts and does not only keep a rank busy, bool[B]."""


class Replay:
    """Buffer of forecasts to start from."""

    def __init__(self, config: ReplayConfig, dataset: Windows, seed: int) -> None:
        self._config, self._dataset, self._seed = config, dataset, seed
        self.entries: dict[tuple[int, int, int], Entry] = {}

    def samples(self, part: RankShare, step: int) -> tuple[Any, Draw]:
        """Gather the samples of a share: windows of the data, or forecasts and the data that follow."""
        start = self._dataset.starts("train")[part.index]
        lead = np.zeros(len(start), dtype=np.int64)
        key, past = [], {}
        for row, place in enumerate(part.place):
            random = np.random.default_rng([self._seed, _KEY, step, int(place)])
            key.append((part.group, int(place), int(random.integers(self._config.depth))))
            entry = self.entries.get(key[-1])
            if entry is not None and random.random() >= self._config.fresh:
                start[row], lead[row], past[row] = entry.start, entry.lead, entry.past
        batch = self._dataset.at_times(part.group, start)
        weight_B = to_device(part.weight, batch.weight_B.device)
        batch = replace(batch, weight_B=weight_B)
        if past:
            rows = np.array(list(past))
            batch = self._dataset.with_past(batch, rows, torch.stack([*past.values()]))
        return batch, Draw(key, start, lead, part.weight > 0)

    def keep(self, draw: Draw, past: Tensor) -> None:
        """Keep the finite ones of the forecasts ``past``, [B, ...], made from the samples of ``draw``."""
        steps = self._dataset.config.output_steps
        start, lead = draw.start + steps, draw.lead + steps
        # The next forecast must not exceed the longest lead time, nor leave the training period.
        usable = (lead + steps <= self._config.longest) & self._dataset.contains("train", start)
        usable &= past.isfinite().flatten(1).all(1).cpu().numpy()
        past = past.detach().float().cpu()
        for row in np.flatnonzero(draw.counts):
            if usable[row]:
                entry = Entry(int(start[row]), int(lead[row]), past[row].clone())
                self.entries[draw.key[row]] = entry
            else:
                self.entries.pop(draw.key[row], None)

    def state(self) -> dict[str, Any]:
        """Plain values and tensors to continue from."""
        keys = sorted(self.entries)
        entries = [self.entries[key] for key in keys]
        return {
            "key": [list(key) for key in keys],
            "start": [entry.start for entry in entries],
            "lead": [entry.lead for entry in entries],
            "past": [entry.past for entry in entries],
        }

    def load(self, states: Iterable[Mapping[str, Any]], rank: int, world_size: int) -> None:
        """Continue from the `state` of each rank of a session with any number of ranks."""
        self.entries = {}
        for state in states:
            values = zip(state["key"], state["start"], state["lead"], state["past"], strict=True)
            for (*group, place, slot), *entry in values:
                if owners(np.array([place]), world_size)[0] == rank:
                    # Checkpoints of earlier versions name no group: weather has one.
                    self.entries[*(group or [0]), place, slot] = Entry(*entry)
