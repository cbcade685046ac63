"""Samples of the next micro-batches, gathered in a thread while the step runs.

The order of the samples is known from (seed, epoch): what a step gets does not depend on the thread. Where
it was foreseen wrongly, see `millrace.training.replay`, others are gathered instead. One thread makes all
samples: datasets need no locks. On a GPU it submits its work to the same stream as the step, which orders
both without events, and copies what comes from the host in another, see `millrace.data.device`; files are
read and values are normalised on the CPU meanwhile.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from millrace.training.batches import RankShare

DEPTH = 2
"""Micro-batches that are gathered before they are asked for: one that is ready, and one in the making."""

Gather = Callable[[], Any]


class Ahead:
    """Samples of the shares ``wanted``, each with what gathers it, in the order in which they are taken.

    The iterator is advanced in the thread. Leaving the context drops what was not taken.
    """

    def __init__(self, wanted: Iterator[tuple[RankShare, Gather]]) -> None:
        self._wanted = wanted
        self._thread = ThreadPoolExecutor(1, "samples")
        self._begun: deque[Future[tuple[RankShare, Any] | None]] = deque()

    def take(self, share: RankShare) -> Any | None:
        """Return the samples of a share if they are the next ones, and begin with others; None otherwise.

        Raises the error of gathering the next ones.
        """
        made = self._begun[0].result()
        if made is None or not _same(made[0], share):
            return None
        self._begun.popleft()
        self._begin()
        return made[1]

    def instead(self, gather: Gather) -> Any:
        """Gather other samples, in the same thread, after those that have been begun."""
        return self._thread.submit(gather).result()

    def _begin(self) -> None:
        self._begun.append(self._thread.submit(self._gather))

    def _gather(self) -> tuple[RankShare, Any] | None:
        following = next(self._wanted, None)
        return None if following is None else (following[0], following[1]())

    def __enter__(self) -> "Ahead":
        for _ in range(DEPTH):
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)


def _same(one: RankShare, other: RankShare) -> bool:
    return (
        one.group == other.group
        and np.array_equal(one.index, other.index)
        and np.array_equal(one.weight, other.weight)
    )
