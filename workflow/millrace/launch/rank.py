"""A rank, started by torchrun: ``torchrun -m millrace.launch.rank MODULE REQUEST``.

It runs the module as ``python -m`` does, but is bound to its torchrun and its agent first, before anything
is imported that takes long: an agent may be killed while its ranks begin, and they would train on for ever.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

import psutil

from millrace.launch.agent import AGENT, CANCELLED
from millrace.processes import die_with_parent


def main() -> None:
    """Run the module that is named first, with the other arguments."""
    die_with_parent()
    try:
        agent = psutil.Process(os.getppid()).ppid()
    except psutil.NoSuchProcess:
        agent = None
    if agent != int(os.environ[AGENT]):  # torchrun was dead before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    if Path(sys.argv[2]).with_suffix(CANCELLED).exists():
        return  # one that was told to stop while it began was started again
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
