"""Where the time of a step goes: a clock that is called at the beginning of each phase."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

PHASES = ("data", "forward", "backward", "communication", "optimiser")

Mark = Callable[[str], None]
"""Called with one of `PHASES` when it begins, which ends the one before."""


def no_mark(phase: str) -> None:
    """Measure nothing."""


class PhaseClock:
    """Times of the phases of all steps, on the device that computes.

    On a GPU the marks are events in the stream of the kernels, because the host runs ahead of the device:
    its own clock would show when work was submitted, not when it was done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []
        self._ends: list[int] = []

    def mark(self, phase: str) -> None:
        """Note that a phase begins."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append((phase, event))
        else:
            self._marks.append((phase, time.perf_counter()))

    def end_step(self) -> None:
        """Note that a step ends."""
        self._ends.append(len(self._marks))
        self.mark("")

    def steps(self) -> list[dict[str, float]]:
        """Seconds of each phase and ``total``, for every step but the first, whose beginning is unknown."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return [self._seconds(begin, end) for begin, end in pairwise(self._ends)]

    def _seconds(self, begin: int, end: int) -> dict[str, float]:
        seconds = dict.fromkeys(PHASES, 0.0)
        marks = self._marks[begin : end + 1]
        for (phase, start), (_, stop) in pairwise(marks):
            if phase:
                seconds[phase] += self._between(start, stop)
        return seconds | {"total": self._between(marks[0][1], marks[-1][1])}

    def _between(self, start: Any, stop: Any) -> float:
        if self._device.type == "cuda":
            return float(start.elapsed_time(stop)) / 1e3
        return float(stop - start)
