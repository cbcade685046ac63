"""A rank, as torchrun starts it: ``rank.py MODULE REQUEST``, in a process that may be forked from torchrun.

It runs the module as ``python -m`` does, but is bound to its torchrun and its agent first: an agent may be
killed while its ranks begin, and they would train on for ever.
"""

import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

import psutil

from millrace.launch.agent import AGENT, CANCELLED
from millrace.processes import STOP_SIGNALS, die_with_parent, end_quickly, set_name


def main() -> None:
    """Run the module that is named first, with the other arguments."""
    die_with_parent()
    end_quickly()
    try:
        agent = psutil.Process(os.getppid()).ppid()
    except psutil.NoSuchProcess:
        agent = None
    if agent != int(os.environ[AGENT]):  # torchrun was dead before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    set_name(f"rank {os.environ['RANK']}")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if Path(sys.argv[2]).with_suffix(CANCELLED).exists():
        return  # one that was told to stop while it began was started again
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except Exception:
        traceback.print_exc()  # here, once: torchrun would repeat it with its own
        sys.exit(1)
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # a forked rank waits for the others to end


if __name__ == "__main__":
    main()
