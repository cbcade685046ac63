"""When to stop training in an orderly way: warning signals and the end of the allocation.

Signals are not reliable (PBS kills ten seconds after the first one, and only the first node receives it);
the clock is. Both only set a flag, on which the ranks agree between two steps.
"""

import os
import signal
import time
from collections import deque
from enum import IntEnum
from types import FrameType

import numpy as np

from millrace.errors import ConfigError
from millrace.processes import STOP_SIGNALS

DEADLINE = "MILLRACE_DEADLINE"
"""Environment variable with the time by which training must have stopped, in seconds since 1970."""


class Stop(IntEnum):
    """Why training stops; of several reasons the greatest counts."""

    NO = 0
    END = 1
    """The allocation ends."""
    WARNED = 2
    """The scheduler warns that it will end (SIGUSR1, SIGUSR2)."""
    CANCELLED = 3
    """Somebody cancelled the training (SIGTERM, SIGINT)."""


class Deadline:
    """Says when there is just enough time left to save.

    Parameters
    ----------
    end : float or None
        When the allocation ends, in seconds since 1970; None: no limit.
    """

    def __init__(self, end: float | None = None) -> None:
        self._end = end
        self._signal: int | None = None
        self._saves: deque[float] = deque(maxlen=100)
        self._steps: deque[float] = deque(maxlen=1000)
        self._validation = 0.0
        self.has_saved = False
        """Whether a checkpoint was written, by this rank or by another one."""

    @classmethod
    def from_environment(cls) -> "Deadline":
        """Read ``MILLRACE_DEADLINE``; raises `ConfigError` for anything but a number."""
        end = os.environ.get(DEADLINE)
        try:
            return cls(float(end) if end else None)
        except ValueError:
            raise ConfigError(
                f"{DEADLINE}={end!r}: expected seconds since 1970, see `date +%s`"
            ) from None

    def listen(self) -> None:
        """Treat `STOP_SIGNALS` as requests to stop."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def stop_now(self) -> None:
        """Have training stop at the next step, as if the allocation ended now."""
        self._end = 0.0

    def record_save(self, seconds: float) -> None:
        """Record how long a checkpoint took."""
        self.has_saved = True
        self._saves.append(seconds)

    def record_step(self, seconds: float) -> None:
        """Record how long an optimiser step took."""
        self._steps.append(seconds)

    def record_validation(self, seconds: float) -> None:
        """Record how long a validation took, which is not interrupted."""
        self._validation = seconds

    @property
    def slow_save(self) -> float:
        """Seconds that a slow checkpoint takes, until it is written."""
        return float(np.percentile(self._saves, 99)) if self._saves else 5.0

    @property
    def slow_step(self) -> float:
        """Seconds that a slow step takes."""
        return float(np.percentile(self._steps, 99)) if self._steps else 1.0

    @property
    def reserve(self) -> float:
        """Seconds needed before the end: three slow saves, a slow step and a validation."""
        return 3 * self.slow_save + self.slow_step + self._validation

    @property
    def stop(self) -> Stop:
        """Reason to stop now; `Stop.NO` if there is none."""
        if self._signal in (signal.SIGTERM, signal.SIGINT):
            return Stop.CANCELLED
        if self._signal is not None:
            return Stop.WARNED
        if self._end is not None and time.time() + self.reserve > self._end:
            return Stop.END
        return Stop.NO
