"""Work in children of this process, which has imported what takes seconds."""

import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from millrace.processes import die_with_parent

HUNG = None
PATIENCE_S = 900.0
"""Longer than anything takes on a machine that is busy with much else."""
TRACE = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Done:
    """How a child ended."""

    code: int | None
    """Exit code; None: it did not end in time."""
    said: str
    """All of its output."""

    @property
    def last(self):
        """The end of what it said."""
        return self.said.strip()[-600:]


def forked(work, directory, said: Path):
    """Call ``work()`` in a child whose current directory is ``directory``; it returns the exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _work(work, directory, said)
    end, status = time.monotonic() + PATIENCE_S, (0, 0)
    while not status[0] and time.monotonic() < end:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if not status[0]:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status[1]) if status[0] else HUNG
    return Done(code, said.read_text(errors="replace"))


def _work(work, directory, said):
    code = 1
    try:
        os.setpgid(0, 0)
        die_with_parent()
        os.chdir(directory)
        for number in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(int(code or 0) & 255)
