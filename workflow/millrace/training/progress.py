"""Progress of training for the user: a live bar on a terminal, plain lines in a log."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from millrace.files import atomic_write, output_errors
from millrace.sealed import sealed
from millrace.training.store import UNTOUCHED, Position

_LINE_EVERY_S = 30.0


class Reporter:
    """Progress of one segment, which ends with ``target_epoch``, and `metrics.jsonl`.

    The file ``metrics`` has one JSON line per epoch; it begins with the ``history`` of the epochs already
    done, so that lines of epochs that a kill undid are dropped. ``title`` is the name of the run.
    """

    def __init__(
        self, title: str, metrics: Path, history: list[dict[str, Any]], target_epoch: int
    ) -> None:
        self._metrics, self._target = metrics, target_epoch
        self.reported = history[-1]["epoch"] if history else 0
        """Last epoch in the file; after a roll-back epochs may come again, computed from an older state."""
        with atomic_write(metrics) as path:
            path.write_text("".join(map(_line, history)))
        self._console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn(f"[bold]{title}"),
            BarColumn(),
            TextColumn("epoch {task.completed:.2f}/{task.total}  {task.description}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=target_epoch)
        self._started = self._last_line = time.monotonic()
        self._first_epoch: float | None = None

    def __enter__(self) -> "Reporter":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(f"{time.strftime('%H:%M:%S')}  {text}", highlight=False, soft_wrap=True)

    def on_step(self, position: Position, steps_per_epoch: int, loss: Tensor) -> None:
        """Move the bar, or print a line if the last one is some time ago."""
        done = position.step / steps_per_epoch
        if self._first_epoch is None:
            self._first_epoch = done
        self._bar.update(self._task, completed=done)
        if self._bar.disable and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            within = position.batch or steps_per_epoch
            self.say(
                f"epoch {done:.2f}/{self._target}  step {within}/{steps_per_epoch}  "
                f"train {float(loss):.4g}  {self._eta(done)}"
            )

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Report an epoch."""
        if record["epoch"] > self.reported:
            self.reported = record["epoch"]
            with output_errors(self._metrics, UNTOUCHED), self._metrics.open("a") as file:
                file.write(_line(record))
        losses = f"train {record['train_loss']:.4g}  validation {record['validation_loss']:.4g}"
        self._bar.update(self._task, completed=record["epoch"], description=losses)
        self._last_line, memory = time.monotonic(), ""
        if "gpu_bytes_allocated" in record:
            # The largest memory in use, and memory reserved from the device.
            used, reserved = (
                record[f"gpu_bytes_{kind}"] / 2**30 for kind in ("allocated", "reserved")
            )
            memory = f"GPU {used:.2f} of {reserved:.2f} GiB  "
        self.say(
            f"epoch {record['epoch']}/{self._target}  step {record['step']}  {losses}  "
            f"lr {record['learning_rate']:.3g}  {record['samples_per_second']:.0f} samples/s  "
            f"{memory}{self._eta(record['epoch'])}"
        )

    def _eta(self, done: float) -> str:
        covered = done - (self._first_epoch or 0.0)
        if covered <= 0:
            return "time left unknown"
        left = (time.monotonic() - self._started) / covered * (self._target - done)
        return f"{int(left // 3600)}:{int(left % 3600 // 60):02d}:{int(left % 60):02d} left"


def _line(record: dict[str, Any]) -> str:
    return json.dumps(sealed(record)) + "\n"
