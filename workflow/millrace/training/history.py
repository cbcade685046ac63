"""Losses of the epochs: the mean of the current one over all ranks, the best so far, and early stopping.

The history of records is in every checkpoint, so that `best_epoch` and `is_exhausted`, which are functions
of it, survive a resume without a state of their own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from millrace.training.config import EarlyStoppingConfig
from millrace.training.distributed import Ranks


class EpochSums:
    """Loss and time of the current epoch, over all ranks, without waiting for the device in each step."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._reset()

    def _reset(self) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        self._samples, self._steps, self._seconds = 0, 0, 0.0

    def add(self, loss: Tensor, samples: int, seconds: float) -> None:
        """Add a step: this rank's part of the mean loss, and the number of samples over all ranks."""
        self._loss += loss.double() * samples
        self._samples, self._steps = self._samples + samples, self._steps + 1
        self._seconds += seconds

    @property
    def mean(self) -> Tensor:
        """Mean loss so far of this rank's share."""
        return self._loss / max(1, self._samples) * self._ranks.world_size

    @property
    def seconds_per_step(self) -> float:
        """Mean time of a step so far."""
        return self._seconds / max(1, self._steps)

    def collect(self) -> tuple[float, float]:
        """Return the mean loss and the seconds of the epoch, and begin the next one."""
        state = self.state()
        self._reset()
        return state["loss"] / max(1, state["samples"]), state["seconds"]

    def state(self) -> dict[str, Any]:
        """Plain values to continue from; call it on all ranks."""
        (loss,) = self._ranks.sum(float(self._loss))
        samples, steps, seconds = self._samples, self._steps, self._seconds
        return {"loss": loss, "samples": samples, "steps": steps, "seconds": seconds}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        # The first rank continues the sum over all ranks; the others start from zero.
        self._reset()
        if self._ranks.is_first:
            self._loss += state["loss"]
        self._samples, self._steps = state["samples"], state["steps"]
        self._seconds = state["seconds"]


def best_epoch(history: Sequence[Mapping[str, Any]], min_delta: float = 0.0) -> int | None:
    """Last epoch whose validation loss was lower than the best before by more than ``min_delta``.

    Records have ``epoch`` and ``validation_loss``; a NaN is never best. None: no epoch had a finite loss.
    """
    best, lowest = None, math.inf
    for record in history:
        if record["validation_loss"] < lowest - min_delta:
            best, lowest = record["epoch"], record["validation_loss"]
    return best


def is_exhausted(history: Sequence[Mapping[str, Any]], config: EarlyStoppingConfig | None) -> bool:
    """Whether the patience of early stopping has run out at the end of ``history``."""
    if config is None or not history:
        return False
    best = best_epoch(history, config.min_delta)
    return history[-1]["epoch"] - (best or 0) >= config.patience
