"""Ties between processes."""

import ctypes
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that happens.

    A worker whose torchrun agent was killed would otherwise train on, unseen, and hold its GPU.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def forwarding_signals(send: Callable[[int], None]) -> Iterator[None]:
    """Pass on what asks this process to stop, and stay to see what becomes of it."""

    def forward(number: int, frame: FrameType | None) -> None:
        send(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
