"""Loss and time of an epoch, over all ranks and across sessions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from millrace.training.distributed import Ranks


class EpochSums:
    """Loss and time of the epoch so far, over all ranks, without waiting for the device each step."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._reset()

    def _reset(self) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        self._samples, self._steps, self._seconds = 0, 0, 0.0

    def add(self, loss: Tensor, samples: int, seconds: float) -> None:
        """Count a step: this rank's part of the loss, samples over all ranks."""
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
        """Mean loss of the epoch and its time, and begin the next."""
        state = self.state()
        self._reset()
        return state["loss"] / max(1, state["samples"]), state["seconds"]

    def state(self) -> dict[str, Any]:
        """Plain values to continue from; call it on all ranks."""
        (loss,) = self._ranks.sum(float(self._loss))
        return {
            "loss": loss,
            "samples": self._samples,
            "steps": self._steps,
            "seconds": self._seconds,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        # The sum over ranks is kept by the first; the others start from nothing.
        self._reset()
        if self._ranks.is_first:
            self._loss += state["loss"]
        self._samples, self._steps = state["samples"], state["steps"]
        self._seconds = state["seconds"]
