"""Training on the model's own forecasts: the pushforward trick with a replay buffer.

In a rollout the errors of a model are part of its input. Here some of the samples start from a state that
the model forecast earlier in training, and its forecasts for them are kept in turn, up to a longest lead
time. Gradients pass through one forecast only, so that long leads cost no more than short ones.

Pushforward trick: Brandstetter, Worrall & Welling 2022 (arXiv:2202.03376); the buffer: Bodnar et al. 2025
(Nature 641). A forecast in the buffer was made with older weights than those that continue from it.

The buffer belongs to positions in the global batch, not to ranks. What it holds, and what is drawn from it,
depends on (seed, step, position) alone: it is the same with any number of ranks, and after any stop.

Where a sample starts does not depend on the values of forecasts, unless these are not finite. So it is
known before they are there, and all else of the sample is gathered while the steps before it run.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from millrace.data.device import to_device
from millrace.training.batches import RankShare, owners
from millrace.training.config import ReplayConfig

_KEY = zlib.crc32(b"replay")


class Datasets(Protocol):
    """Samples in time whose past can be replaced, of one dataset or several."""

    config: Any
    """With ``output_steps``."""

    def member(self, group: int) -> tuple["Windows", int]:
        """Return the dataset of a group, and the number that the group has in it."""


class Windows(Protocol):
    """A dataset of such samples."""

    def starts(self, split: Any) -> np.ndarray:
        """See `millrace.data.window_dataset.WindowDataset.starts`."""

    def contains(self, split: Any, starts: np.ndarray) -> np.ndarray:
        """See `millrace.data.window_dataset.WindowDataset.contains`."""

    def at_times(self, group: int, starts: np.ndarray) -> Any:
        """Gather windows that begin at the given time indices, int64[B]."""

    def replace_past(self, batch: Any, rows: np.ndarray, past: Tensor) -> None:
        """Replace, in a batch of `at_times`, the past of the samples ``rows``, int64[R], by [R, ...]."""


@dataclass(frozen=True)
class Origin:
    """Where the window of a forecast begins."""

    start: int
    """Time index at which its window begins."""
    lead: int
    """Lead time of its last state, in states from the data."""


@dataclass(frozen=True)
class Entry(Origin):
    """A forecast to start from."""

    past: Tensor
    """States of the window, on the CPU."""


Key = tuple[int, int, int]
"""(group, position in the global batch, slot of the buffer)."""


@dataclass(frozen=True)
class Lots:
    """What chance decides of the samples of a share, whatever the buffer holds."""

    part: RankShare
    step: int
    key: list[Key]
    """Where the forecasts of each sample are kept, and may be taken from."""
    fresh: list[bool]
    """Whether each starts from data, even if there is a forecast."""
    start: np.ndarray
    """Time indices at which the windows of data begin, int64[B]."""


@dataclass(frozen=True)
class Draw:
    """Where the samples of a share come from."""

    lots: Lots
    start: np.ndarray
    """Time indices at which the windows begin, int64[B]."""
    lead: np.ndarray
    """Lead times of their last past states, int64[B]; 0 for data."""


class Replay:
    """Buffer of forecasts to start from."""

    def __init__(self, config: ReplayConfig, dataset: Datasets, seed: int) -> None:
        self._config, self._dataset, self._seed = config, dataset, seed
        self.entries: dict[Key, Entry] = {}

    def lots(self, part: RankShare, step: int) -> Lots:
        """Draw lots for the samples of a share."""
        key, fresh = list[Key](), list[bool]()
        for place in part.place.tolist():
            random = np.random.default_rng([self._seed, _KEY, step, place])
            key.append((part.group, place, int(random.integers(self._config.depth))))
            fresh.append(random.random() < self._config.fresh)
        return Lots(part, step, key, fresh, self._windows(part).starts("train")[part.index])

    def draw(self, lots: Lots, origins: Mapping[Key, Origin] | None = None) -> Draw:
        """Where samples start; ``origins`` are those of what can be started from, by default `entries`."""
        origins = self.entries if origins is None else origins
        start = lots.start.copy()
        lead = np.zeros(len(start), dtype=np.int64)
        for row, (key, fresh) in enumerate(zip(lots.key, lots.fresh, strict=True)):
            if not fresh and (origin := origins.get(key)) is not None:
                start[row], lead[row] = origin.start, origin.lead
        return Draw(lots, start, lead)

    def foreseen(self) -> Callable[[RankShare, int], tuple[Draw, Any]]:
        """Return what draws, and gathers, for shares and steps as they follow on each other from now on.

        It does not wait for forecasts: all are taken to be finite. It may be called in another thread.
        """
        # Not the entries themselves, which would keep their states in memory.
        origins = {key: Origin(entry.start, entry.lead) for key, entry in self.entries.items()}

        def following(part: RankShare, step: int) -> tuple[Draw, Any]:
            draw = self.draw(self.lots(part, step), origins)
            for row, origin in self._continuations(draw):
                if origin is None:
                    origins.pop(draw.lots.key[row], None)
                else:
                    origins[draw.lots.key[row]] = origin
            return draw, self.gather(draw)

        return following

    def gather(self, draw: Draw) -> Any:
        """Gather the windows of a draw, with the past that the data say."""
        part = draw.lots.part
        windows, group = self._dataset.member(part.group)
        batch = windows.at_times(group, draw.start)
        return replace(batch, weight_B=to_device(part.weight, batch.weight_B.device))

    def fill(self, batch: Any, draw: Draw) -> Any:
        """Put the forecasts of a draw in the place of the past in its windows; returns these."""
        rows = np.flatnonzero(draw.lead)
        if len(rows):
            past = torch.stack([self.entries[draw.lots.key[row]].past for row in rows])
            self._windows(draw.lots.part).replace_past(batch, rows, past)
        return batch

    def keep(self, draw: Draw, past: Tensor) -> None:
        """Keep the finite ones of the forecasts ``past``, [B, ...], made from the samples of ``draw``."""
        finite = past.isfinite().flatten(1).all(1).cpu().numpy()
        past = past.detach().float().cpu()
        for row, origin in self._continuations(draw):
            if origin is not None and finite[row]:
                entry = Entry(origin.start, origin.lead, past[row].clone())
                self.entries[draw.lots.key[row]] = entry
            else:
                self.entries.pop(draw.lots.key[row], None)

    def _windows(self, part: RankShare) -> Windows:
        return self._dataset.member(part.group)[0]

    def _continuations(self, draw: Draw) -> Iterator[tuple[int, Origin | None]]:
        """Samples that count, and where what is forecast from them begins; None: it is of no use."""
        steps = self._dataset.config.output_steps
        start, lead = draw.start + steps, draw.lead + steps
        # The next forecast must not exceed the longest lead time, nor leave the training period.
        within = self._windows(draw.lots.part).contains("train", start)
        usable = within & (lead + steps <= self._config.longest)
        # Others only keep a rank busy.
        for row in np.flatnonzero(draw.lots.part.weight > 0):
            yield int(row), Origin(int(start[row]), int(lead[row])) if usable[row] else None

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
