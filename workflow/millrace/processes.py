"""Parent and child processes: common death, signals that are passed on, and the library of both."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which a user or a scheduler asks a process to stop."""
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, for whatever reason.

    Otherwise a worker whose torchrun agent was killed would continue to train, unseen, and hold its GPU.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def library_environment() -> dict[str, str]:
    """Variables with which another Python process imports this library, wherever it stands."""
    library = str(Path(__file__).parents[1])
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{library}{os.pathsep}{others}" if others else library}


@contextmanager
def forwarding_signals(send: Callable[[int], None]) -> Iterator[None]:
    """Pass `STOP_SIGNALS` on to ``send`` while the context is open, instead of being ended by them."""

    def forward(number: int, frame: FrameType | None) -> None:
        send(number)

    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
