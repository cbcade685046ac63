"""What every job of the workflow does around its one library call."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from millrace.errors import UserError
from millrace.systems.base import Progress
from millrace.systems.registry import load_plugins

_LINE_EVERY_S = 5.0


@contextlib.contextmanager
def job(snakemake: Any) -> Iterator[Callable[[str], Progress]]:
    """Send output to the job's log, and end with the sentence of a `UserError`.

    Systems from outside are loaded. Child processes write to the log as well. On success nothing is said on
    the console: Snakemake does that; on failure Snakemake shows the log.

    Yields
    ------
    Callable
        Takes what is counted ("files"), gives the progress callback ``(done, total)`` that writes a
        line to the log every few seconds.
    """
    with open(snakemake.log[0], "w", buffering=1) as file:  # noqa: PTH123  descriptor needed below
        sys.stdout.flush()
        sys.stderr.flush()
        console = [os.dup(descriptor) for descriptor in (1, 2)]
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        try:
            try:
                load_plugins(snakemake.config.get("plugins", []))
                yield _progress
            finally:
                sys.stdout.flush()  # the reason of a failure ends the log
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(int(error.exit_code))
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in zip((1, 2), console, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)


def _progress(what: str) -> Progress:
    started = time.monotonic()
    last = [0.0]

    def report(done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - last[0] > _LINE_EVERY_S:
            last[0] = now
            rate = done / max(now - started, 1e-9)
            left = (total - done) / rate if rate else float("inf")
            print(f"{done}/{total} {what}, {rate:.1f}/s, {left:.0f} s left", flush=True)

    return report
