"""When to stop in good order: warning signals and the end of the allocation.

Signals are not reliable (PBS kills ten seconds after the first one, and only the first node hears it);
the clock is. Both only set a flag: the ranks agree on it between two steps.
"""

import os
import signal
import time
from collections import deque
from types import FrameType

import numpy as np

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Deadline:
    """Tells when there is just enough time left to save.

    Parameters
    ----------
    end : float or None
        When the allocation ends, in seconds since the epoch; None: no limit.
    """

    def __init__(self, end: float | None) -> None:
        self._end = end
        self._signal: int | None = None
        self._saves: deque[float] = deque(maxlen=100)
        self._steps: deque[float] = deque(maxlen=1000)

    @classmethod
    def from_environment(cls) -> "Deadline":
        """Read ``MILLRACE_DEADLINE`` or, inside a SLURM job, ``SLURM_JOB_END_TIME``."""
        end = os.environ.get("MILLRACE_DEADLINE") or os.environ.get("SLURM_JOB_END_TIME")
        return cls(float(end) if end else None)

    def listen(self) -> None:
        """Take warning signals as a request to stop."""
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def record_save(self, seconds: float) -> None:
        """Learn how long a checkpoint takes."""
        self._saves.append(seconds)

    def record_step(self, seconds: float) -> None:
        """Learn how long an optimiser step takes."""
        self._steps.append(seconds)

    @property
    def reserve(self) -> float:
        """Seconds to keep: three slow saves and a slow step."""
        save = float(np.percentile(self._saves, 99)) if self._saves else 5.0
        step = float(np.percentile(self._steps, 99)) if self._steps else 1.0
        return 3 * save + step

    @property
    def reason(self) -> str | None:
        """Why to stop now, or None to go on."""
        if self._signal is not None:
            return f"signal {signal.Signals(self._signal).name}"
        if self._end is not None and time.time() + self.reserve > self._end:
            return "end of the allocation"
        return None
