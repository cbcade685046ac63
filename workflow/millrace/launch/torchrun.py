"""torchrun, whose ranks meet on the loopback interface if they are all on this machine, and nowhere else.

By itself torchrun listens on all interfaces, needs a name of this machine that resolves, and answers the
death of a rank, and a signal, with a traceback.
"""

import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from millrace.training.distributed import LOOPBACK, loopback_store


def main() -> int:
    """Run torchrun with the arguments of the command line; returns its exit code."""
    given, store = sys.argv[1:], None
    if "--nnodes=1" in given:
        store = loopback_store(wait_for_workers=False)
        meeting = [f"--rdzv-endpoint={LOOPBACK}:{store.port}", "--rdzv-conf=is_host=0"]
        given = [*meeting, f"--local-addr={LOOPBACK}", *given]
    try:
        torchrun(given)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        print(f"rank {rank} ended with {how}", file=sys.stderr)
        return 1
    except SignalException as error:
        print(f"torchrun was ended by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
