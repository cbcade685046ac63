"""torchrun of one node, whose ranks are forked from it: ``python -m millrace.launch.torchrun OPTIONS``.

The imports of a rank take as long as many a short training, and a cluster's file system feels those of
hundreds of ranks. Here torchrun imports once what a training needs, and its ranks begin with it, in memory
that they share. Without ``--rdzv-endpoint`` all ranks are on this machine: they meet on its loopback
interface, and nowhere else. By itself torchrun listens on all interfaces, and needs a name of this machine
that resolves.
"""

import json
import logging
import sys
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing import api as multiprocessing
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from millrace.launch import rank
from millrace.systems.registry import import_ahead
from millrace.training import segment  # noqa: F401 - so that the ranks have it
from millrace.training.distributed import LOOPBACK, loopback_store


def main() -> int:
    """Run torchrun with the command line: its options, a module, and the request. Returns an exit code."""
    *options, module, request = sys.argv[1:]
    import_ahead(json.loads(Path(request).read_text()).get("definition", {}))
    if not any(option.startswith("--rdzv-endpoint") for option in options):
        store = loopback_store(wait_for_workers=False)
        options += [f"--rdzv-endpoint={LOOPBACK}:{store.port}", "--rdzv-conf=is_host=0"]
        options += [f"--local-addr={LOOPBACK}"]
    # A GPU that a package has opened while it was imported is of no use to forked processes.
    method = "spawn" if torch.cuda.is_initialized() else "fork"
    logging.getLogger(multiprocessing.__name__).addFilter(_without_traceback)
    try:
        torchrun(
            [*options, f"--start-method={method}", "--run-path", rank.__file__, module, request]
        )
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        print(f"rank {number} ended with {how}: what it said stands above", file=sys.stderr)
        return 1
    except SignalException as error:
        print(f"torchrun was ended by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    return 0


def _without_traceback(record: logging.LogRecord) -> bool:
    """Keep a message of torchrun, but not where in torchrun it noticed that a rank has failed."""
    vars(record).update(exc_info=None)
    return True


if __name__ == "__main__":
    sys.exit(main())
