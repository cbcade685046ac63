"""A worker that hangs is killed with all of its node, so that torchrun starts all ranks again.

A collective that never ends would otherwise wait for the time limit of the process group, half an hour,
and a rank that is stuck outside of one for ever.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import psutil

_FACTOR, _GRACE_S = 3.0, 10.0
# Before that many steps nobody knows how long one takes: kernels are compiled, files are read first.
_LEARN_STEPS = 20
_LOOK_EVERY_S = 1.0


class Watchdog:
    """Watches the time since the last step.

    Parameters
    ----------
    grace : float
        Seconds that a step may take beyond three slow ones (the 99th percentile).
    """

    def __init__(self, grace: float = _GRACE_S) -> None:
        self._grace = grace
        self._steps: deque[float] = deque(maxlen=1000)
        self._last = time.monotonic()

    def beat(self, seconds: float) -> None:
        """Note that a step is done, which took that long."""
        self._steps.append(seconds)
        self._last = time.monotonic()

    @property
    def limit(self) -> float | None:
        """Seconds that the next step may take; None: not known yet."""
        if len(self._steps) < _LEARN_STEPS:
            return None
        return _FACTOR * float(np.percentile(self._steps, 99)) + self._grace

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Kill the ranks of this node if a step takes longer than `limit`, while the context is open."""
        over = threading.Event()
        self._last = time.monotonic()
        threading.Thread(target=self._watch, args=[over], daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_LOOK_EVERY_S):
            limit = self.limit
            waited = time.monotonic() - self._last
            if limit is not None and waited > limit:
                print(
                    f"rank {os.environ.get('RANK', 0)}: no step for {waited:.0f} s, expected within "
                    f"{limit:.0f} s: it hangs and is killed, to start again from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                _kill_ranks_of_node()


def _kill_ranks_of_node() -> None:
    """Kill this process, and before it those that torchrun started beside it.

    The one that hangs may not heed the SIGTERM that torchrun sends the others when one has died, and
    torchrun would wait half a minute for it.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        for rank in psutil.Process(os.getppid()).children():
            if rank.pid != os.getpid():
                with contextlib.suppress(psutil.NoSuchProcess):
                    rank.kill()
    os.kill(os.getpid(), signal.SIGKILL)
