"""torchrun for ranks that are all on this machine: they meet on its loopback interface, and nowhere else.

By itself torchrun listens on all interfaces, and needs a name of this machine that resolves.
"""

import sys

from torch.distributed.run import main as torchrun

from millrace.training.distributed import LOOPBACK, loopback_store


def main() -> None:
    """Run torchrun with the arguments of the command line."""
    store = loopback_store(wait_for_workers=False)
    meeting = [f"--rdzv-endpoint={LOOPBACK}:{store.port}", "--rdzv-conf=is_host=0"]
    torchrun([*meeting, f"--local-addr={LOOPBACK}", *sys.argv[1:]])


if __name__ == "__main__":
    main()
