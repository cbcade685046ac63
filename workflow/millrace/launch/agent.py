"""Agent that the launcher starts on each node of a job: torchrun with the ranks of the node."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from millrace.launch.node_folder import node_folder, sweep
from millrace.processes import SHARED_SAMPLES, dying_with_this, forwarding_signals

CANCELLED = ".cancelled"
"""Suffix of a file beside the request; if it exists, ranks must not be started again."""
AGENT = "MILLRACE_AGENT"
"""Environment variable of the ranks: the process id of their agent."""
FAILED = ".error"
"""Suffix of a file beside the request with sentence and exit code of an error in a rank."""

_PATIENCE_S = 4 * 3600
"""How long nodes wait for the others to copy samples."""

# Snakemake sets these to the threads of the whole job; each rank gets its share.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# Otherwise torchrun keeps its key-value store when it starts ranks again. They find each other by its keys,
# and could mistake those of dead ranks for new ones: gloo fails then, and NCCL waits for ever.
_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# Ranks of one machine talk over it alone, unless a cluster's settings name another interface.
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def main() -> int:
    """Start torchrun and wait for it; signals are passed on to the workers directly."""
    parser = argparse.ArgumentParser(description="Run the ranks of one node.")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True, help="ranks of this node")
    parser.add_argument("--cpus", type=int, required=True, help="CPUs of all ranks together")
    parser.add_argument("--endpoint", help="host:port where several nodes meet")
    parser.add_argument("--run", required=True, help="name of this start, the same on all nodes")
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("module")
    parser.add_argument("request")
    given = parser.parse_args()
    alone = given.nodes == 1
    command = [sys.executable, "-m", "millrace.launch.torchrun"]
    command += [f"--nproc-per-node={given.ranks}"]
    command += [f"--nnodes={given.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={given.run}"]
    command += [] if alone else [f"--rdzv-endpoint={given.endpoint}"]
    command += [f"--max-restarts={given.restarts}"]
    # Else torchrun makes a folder for logs in /tmp, which it never removes. This one goes with the request.
    command += [f"--log-dir={Path(given.request).parent}"]
    # More threads than cores slow everything down, whatever the scheduler calls a CPU.
    cpus = min(given.cpus, len(os.sched_getaffinity(0)))
    threads = str(max(1, cpus // given.ranks))
    environment = (_LOOPBACK if alone else {}) | os.environ | _STORE | {AGENT: str(os.getpid())}
    environment |= dict.fromkeys(_THREADS, threads)
    request = Path(given.request)
    asked = json.loads(request.read_text())
    copied = asked["files"] if asked.get("execution", {}).get("local_copies") else None
    if copied and not alone:  # the disks of some nodes are slower, or have no room
        command += [f"--rdzv-conf=read_timeout={_PATIENCE_S},join_timeout={_PATIENCE_S}"]
    with _local_copies(copied, request) as copies, _shared_samples(given.ranks) as folder:
        environment |= {**copies, **folder}
        return _run([*command, given.module, given.request], environment, request)


@contextlib.contextmanager
def _local_copies(files: Any, request: Path) -> Iterator[Mapping[str, str]]:
    """Environment of ranks that read samples on this node, if there are ``files`` to copy."""
    if not files:
        yield {}
        return
    from millrace.launch.local_copies import local_copies  # takes a second

    def stop(number: int) -> None:
        if number == signal.SIGTERM:  # a warning is of no use before anything was trained
            request.with_suffix(CANCELLED).touch()
            raise SystemExit(128 + number)

    with contextlib.ExitStack() as stack:
        with forwarding_signals(stop):
            made = stack.enter_context(local_copies(files))
        yield made


@contextlib.contextmanager
def _shared_samples(ranks: int) -> Iterator[Mapping[str, str]]:
    """Environment of ranks that have samples in common, see `millrace.data.shared`."""
    with contextlib.ExitStack() as stack:
        made = {}
        if ranks > 1:
            with contextlib.suppress(OSError):  # each reads them for itself
                sweep()
                made[SHARED_SAMPLES] = str(stack.enter_context(node_folder()))
        yield made


def _run(command: Sequence[str], environment: Mapping[str, str], request: Path) -> int:
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=dying_with_this()
    )

    def warn_workers(number: int) -> None:
        cancelled = number == signal.SIGTERM
        if cancelled:
            request.with_suffix(CANCELLED).touch()
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = psutil.Process(process.pid).children()
            # torchrun would end its workers before they have saved, but need not begin any.
            for one in workers or ([process] if cancelled else []):
                one.send_signal(number)

    with forwarding_signals(warn_workers):
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
