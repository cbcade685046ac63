"""Log, plug-ins and exit code of every job of the workflow, around its one library call."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from millrace.errors import tell
from millrace.processes import end_quickly, stop_without_head
from millrace.systems.base import Progress
from millrace.systems.registry import load_plugins

_LINE_EVERY_S = 5.0


@contextlib.contextmanager
def job(snakemake: Any) -> Iterator[Callable[[str], Progress]]:
    """Redirect output, also of child processes, to the job's log, and load systems from outside.

    An error ends the process with a sentence, as the last line of the log, and its exit code, see
    `millrace.errors.tell`. The console stays silent, because Snakemake reports there, unless the log cannot
    be written.

    Yields
    ------
    Callable
        Takes a plural noun ("files") and returns the progress callback ``(done, total)``, which writes a
        line to the log every few seconds.
    """
    try:
        file = open(snakemake.log[0], "w", buffering=1)  # noqa: PTH123, SIM115  descriptor needed below
    except OSError as error:
        sys.exit(tell(error))
    untold = None
    with file:
        sys.stdout.flush()
        sys.stderr.flush()
        console = [os.dup(descriptor) for descriptor in (1, 2)]
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        stop_without_head()
        end_quickly()
        try:
            try:
                load_plugins(snakemake.config.get("plugins", []))
                yield progress_in_lines
            finally:
                sys.stdout.flush()  # the reason of a failure is the last line of the log
        except Exception as error:
            untold = error
            with contextlib.suppress(OSError):  # the disk of the log is full
                code = tell(error)
                sys.stderr.flush()
                sys.exit(code)
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            for descriptor, copy in zip((1, 2), console, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
    if untold is not None:
        sys.exit(tell(untold))


def progress_in_lines(what: str, file: TextIO | None = None) -> Progress:
    """Progress for a log: now and then a line with the rate and the time that is left.

    ``file`` is by default the standard output.
    """
    started, last = time.monotonic(), 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last > _LINE_EVERY_S:
            last = now
            rate = done / max(now - started, 1e-9)
            left = (total - done) / rate if rate else float("inf")
            print(f"{done}/{total} {what}, {rate:.1f}/s, {left:.0f} s left", file=file, flush=True)

    return report
