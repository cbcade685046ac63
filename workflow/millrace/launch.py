"""Launcher of a training segment: torchrun with the right ranks and threads, signals, exit codes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import psutil

from millrace.errors import ConfigError, ExitCode
from millrace.layout import Layout
from millrace.processes import die_with_parent
from millrace.training.request import Request

# Snakemake sets these to the threads of the whole job; each rank gets its share.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def launch(request: Request, threads: int) -> int:
    """Train a segment on this node.

    Parameters
    ----------
    request : Request
    threads : int
        CPU threads for all ranks together.

    Returns
    -------
    int
        An `ExitCode`: 0 when the checkpoint and its receipt are there, 75 when training stopped in good
        order before the target epoch, else the code of the error, which was printed.

    Raises
    ------
    ConfigError
        The layout has several nodes.
    """
    layout = Layout.parse(request.layout)
    if layout.nodes > 1:
        raise ConfigError(
            f"layout {layout}: needs {layout.nodes} nodes, and a job of this profile runs on one; choose "
            f"n1_gpu{layout.world_size}, or a cluster profile"
        )
    with tempfile.TemporaryDirectory(prefix="millrace_") as directory:
        path = Path(directory) / "request.json"
        path.write_text(json.dumps(asdict(request)))
        code = _torchrun(path, layout.gpus_per_node, max(1, threads // layout.gpus_per_node))
        error = path.with_suffix(".error")
        if error.exists():
            message, user_code = json.loads(error.read_text())
            print(f"error: {message}", file=sys.stderr)
            return int(user_code)
    # Success is what was committed, not what a process said last.
    if Path(request.checkpoint).is_file() and Path(request.receipt).is_file():
        return ExitCode.OK
    return ExitCode.TRY_AGAIN if code == 0 else code


def _torchrun(request: Path, ranks: int, threads: int) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "millrace.train", str(request)]
    # Inside a conda environment the package is known to the job alone, not to its children.
    library = str(Path(__file__).parents[1])
    environment = os.environ | dict.fromkeys(_THREADS, str(threads)) | {"PYTHONPATH": library}
    # In a session of its own, Ctrl-C reaches the launcher alone, which warns the workers.
    agent = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=die_with_parent
    )
    with _forwarding_signals(agent.pid):
        return agent.wait()


@contextmanager
def _forwarding_signals(agent: int) -> Iterator[None]:
    """Pass warnings on to the workers, past torchrun, which would end them before they have saved."""

    def forward(number: int, frame: FrameType | None) -> None:
        try:
            for worker in psutil.Process(agent).children():
                worker.send_signal(number)
        except psutil.NoSuchProcess:
            return

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
