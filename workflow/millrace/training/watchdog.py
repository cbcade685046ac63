"""A worker that hangs is killed together with all of its node, so that torchrun starts all ranks again.

Otherwise a collective operation that never ends would wait for the time limit of the process group, half an
hour, and a rank that is stuck elsewhere would wait for ever.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import psutil

_FACTOR, _GRACE_S = 3.0, 10.0
# The first steps say little about the later ones: kernels are compiled, and files are read for the first
# time.
_LEARN_STEPS = 20
# Checkpoints are written at the end of an epoch: a busy file system may be slow, and the time of the first
# checkpoint is unknown.
_GRACE_OF_FILES_S, _GRACE_OF_FIRST_FILES_S = 60.0, 600.0
LOOK_EVERY_S = 1.0


class Watchdog:
    """Limits the time of a step, and that of validation and saving between two epochs.

    Parameters
    ----------
    grace : float
        Seconds that a step may take beyond three slow ones (the 99th percentile).
    grace_of_files : float
        Seconds that validation and saving may take beyond three times the longest so far, once a checkpoint
        has been written.
    """

    def __init__(self, grace: float = _GRACE_S, grace_of_files: float = _GRACE_OF_FILES_S) -> None:
        self._grace, self._grace_of_files = grace, grace_of_files
        self._steps: deque[float] = deque(maxlen=1000)
        self._longest_end: float | None = None
        self._has_saved = self._is_first = False
        self._last = time.monotonic()

    def beat(self, seconds: float) -> None:
        """Record that a step is done, which took ``seconds``."""
        self._steps.append(seconds)
        self._last, self._is_first = time.monotonic(), False

    @property
    def limit(self) -> float | None:
        """Seconds that the next step may take; None: not known yet."""
        if len(self._steps) < _LEARN_STEPS:
            return None
        # The first step of an epoch waits for the rank that writes a checkpoint.
        files = self.limit_of_end or 0.0 if self._is_first else 0.0
        return _FACTOR * float(np.percentile(self._steps, 99)) + self._grace + files

    @property
    def limit_of_end(self) -> float | None:
        """Seconds that the end of an epoch may take; None: not known yet."""
        if self._longest_end is None:
            return None
        grace = self._grace_of_files if self._has_saved else _GRACE_OF_FIRST_FILES_S
        return _FACTOR * self._longest_end + grace

    def watching_steps(self) -> contextlib.AbstractContextManager[None]:
        """Kill the ranks of this node if a step takes longer than `limit` while the context is open."""
        self._is_first = True
        return self._watching("step", lambda: self.limit)

    @contextlib.contextmanager
    def watching_end_of_epoch(self, has_saved: bool) -> Iterator[None]:
        """Kill the ranks of this node if the context is open for longer than `limit_of_end`.

        ``has_saved`` says whether a checkpoint was written at the end of an earlier epoch.
        """
        self._has_saved = has_saved
        with self._watching("end of the epoch", lambda: self.limit_of_end):
            yield
        self._longest_end = max(self._longest_end or 0.0, time.monotonic() - self._last)

    @contextlib.contextmanager
    def _watching(self, what: str, limit: Callable[[], float | None]) -> Iterator[None]:
        over = threading.Event()
        self._last = time.monotonic()
        threading.Thread(target=self._watch, args=[over, what, limit], daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: threading.Event, what: str, limit: Callable[[], float | None]) -> None:
        while not over.wait(LOOK_EVERY_S):
            seconds, waited = limit(), time.monotonic() - self._last
            if seconds is not None and waited > seconds:
                print(
                    f"rank {os.environ.get('RANK', 0)}: no {what} for {waited:.0f} s, expected within "
                    f"{seconds:.0f} s: it hangs and is killed, to start again from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                _kill_ranks_of_node()


def _kill_ranks_of_node() -> None:
    """Kill this process, and before it the ranks that torchrun started beside it.

    The rank that hangs may not react to the SIGTERM that torchrun sends to the others when one has died,
    and torchrun would wait half a minute for it.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        for rank in psutil.Process(os.getppid()).children():
            if rank.pid != os.getpid():
                with contextlib.suppress(psutil.NoSuchProcess):
                    rank.kill()
    os.kill(os.getpid(), signal.SIGKILL)
