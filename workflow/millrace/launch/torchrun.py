"""torchrun of one node: ``python -m millrace.launch.torchrun OPTIONS MODULE REQUEST``.

Without GPUs its ranks are forked from it. The imports of a rank take as long as many a short training:
here they are done once, and shared. A forked process cannot use GPUs that its parent has looked at, as
torchrun does, so that ranks with GPUs are started anew.

Without ``--rdzv-endpoint`` all ranks are on this machine: they meet on its loopback interface, and nowhere
else. By itself torchrun listens on all interfaces, needs a name of this machine that resolves, and answers
the death of a rank, and a signal, with a traceback.
"""

import importlib
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing import api as multiprocessing
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import main as torchrun

from millrace.errors import first_line
from millrace.launch import rank
from millrace.processes import end_quickly, importing
from millrace.systems.registry import import_ahead
from millrace.training.distributed import LOOPBACK, loopback_store

_HANDLED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""Signals for which torchrun has handlers."""


def main() -> int:
    """Run torchrun with the command line; returns its exit code."""
    end_quickly()
    try:
        return _run()
    except SignalException as error:
        print(f"torchrun was ended by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    finally:  # torchrun's handlers raise errors, of which nothing would catch one while Python ends
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)


def _run() -> int:
    *options, module, request = sys.argv[1:]
    started = ["-m", rank.__name__]
    if not torch.cuda.is_available():
        with importing():
            _import_for(Path(request))
        _fork_without_handlers()
        started = ["--start-method=fork", "--run-path", rank.__file__]
    endpoint = next((one for one in options if one.startswith("--rdzv-endpoint=")), None)
    if endpoint is None:
        store = loopback_store(wait_for_workers=False)
        endpoint = f"--rdzv-endpoint={LOOPBACK}:{store.port}"
        options += [endpoint, "--rdzv-conf=is_host=0", f"--local-addr={LOOPBACK}"]
    logging.getLogger(multiprocessing.__name__).addFilter(_without_traceback)
    try:
        torchrun([*options, *started, module, request])
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        print(f"rank {number} ended with {how}: what it said stands above", file=sys.stderr)
        return 1
    except RendezvousError as error:
        where = endpoint.partition("=")[2]
        print(f"the nodes did not meet at {where}: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


def _import_for(request: Path) -> None:
    """Import what the ranks of a request will need."""
    importlib.import_module("millrace.training.segment")
    with suppress(Exception):  # what cannot be imported, the ranks tell in a sentence
        asked = json.loads(request.read_text())
        if asked.get("parallel"):
            importlib.import_module("millrace.training.parallel.divided")
        import_ahead(asked.get("definition", {}))


def _fork_without_handlers() -> None:
    """Have a signal that meets a process while it is forked end it: torchrun's handler would fail there."""

    def begin() -> None:
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

    os.register_at_fork(
        before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, _HANDLED),
        after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _HANDLED),
        after_in_child=begin,
    )


def _without_traceback(record: logging.LogRecord) -> bool:
    """Keep a message of torchrun, but not where in torchrun it noticed that a rank has failed."""
    vars(record).update(exc_info=None)
    return True


if __name__ == "__main__":
    sys.exit(main())
