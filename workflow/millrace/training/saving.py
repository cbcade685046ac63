"""When a checkpoint is due within an epoch, and its writing beside the training."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Saver:
    """Writes one checkpoint at a time in a thread, and says when the next one is due.

    An error of the thread is raised by the call after it. ``steps`` and ``minutes`` are between checkpoints
    within an epoch; None: there are none. Training begins after ``step`` steps. Leaving the context waits
    for what is written.
    """

    def __init__(self, steps: int | None, minutes: float | None, step: int) -> None:
        self._steps, self._seconds = steps, None if minutes is None else 60 * minutes
        self.begin(step)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def begin(self, step: int) -> None:
        """Note that a checkpoint is taken now, after ``step`` steps; call it on all ranks."""
        self._begun, self._saved_step = time.monotonic(), step

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due by the number of steps: the same on all ranks."""
        return bool(self._steps) and step % (self._steps or 1) == 0 and step != self._saved_step

    def is_late(self, step: int, reserve: float = 0) -> bool:
        """Whether a checkpoint is due by the clock of this rank, and the one before is written.

        It is begun ``reserve`` seconds early, as it counts only once it is written: but not before half of
        the time, so that slow disks do not make training save all the time.
        """
        if self._seconds is None or step == self._saved_step:
            return False
        after = max(self._seconds - reserve, self._seconds / 2)
        over = time.monotonic() - self._begun >= after
        return over and (self._writing is None or self._writing.done())

    def start(self, write: Callable[[], None]) -> None:
        """Call ``write`` in the thread, once what was started before is done."""
        self.wait()
        self._writing = self._thread.submit(write)

    def wait(self) -> None:
        """Wait until all is written; raises its error."""
        if self._writing is not None:
            written, self._writing = self._writing, None
            written.result()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()


def snapshot(value: Any) -> Any:
    """Copy the tensors of a state to memory of the CPU, and the dicts and lists around them."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(one) for one in value)
    return value
