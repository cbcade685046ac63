"""Launcher of a training segment: one agent on each node, deadline, exit codes, requeueing."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

import millrace
from millrace.cluster import Cluster
from millrace.errors import ConfigError, ExitCode
from millrace.launch.agent import CANCELLED, FAILED
from millrace.layout import Layout
from millrace.processes import dying_with_this, forwarding_signals
from millrace.schedulers import Allocation, allocation, queue
from millrace.training.deadline import DEADLINE, Stop
from millrace.training.owner import LockedError, read_owner
from millrace.training.request import Request

# Time between the last save and the end of the job, for publishing and Snakemake's checks of the outputs.
_EXIT_RESERVE_S = 20.0
# Number of times that all ranks are started again from the last checkpoint when one dies or hangs.
_RESTARTS = 3
# Time in which a job that is told to stop must save and end.
_TAKE_OVER_S = 180.0
_LAUNCH = ".launch_"
# The last part is that of `tempfile`, which may hold underscores.
_MADE_BY = re.compile(re.escape(_LAUNCH) + r"(?P<host>.+)_(?P<process>\d+)_\w{8}")
_OLD_S = 86400.0


@dataclass(frozen=True)
class Surroundings:
    """What a cluster needs around the processes of a training."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables, for example of NCCL."""
    modules: Sequence[str] = ()
    """Environment modules to load."""
    container: str = ""
    """What runs a command in an image, see `millrace.launch.container.command`; empty: no image."""


def surroundings_of(cluster: Cluster | None, container: str | None = None) -> Surroundings:
    """Surroundings that a cluster needs, none for this machine, and the image that ranks run in."""
    if cluster is None:
        return Surroundings(container=container or "")
    return Surroundings(cluster.environment, cluster.modules, container or "")


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    code: int
    """An `ExitCode`, or that of a process that failed otherwise."""
    stop: Stop = Stop.NO
    """Why it stopped in an orderly way before its target, if it did."""

    @property
    def wants_more_time(self) -> bool:
        """Whether the job should run again."""
        # Not if it was cancelled; a scheduler that preempts a job requeues it itself.
        return self.stop in (Stop.END, Stop.WARNED)


def launch(request: Request, cpus: int, surroundings: Surroundings | None = None) -> int:
    """Train a segment like `train`, and requeue this job if its time is too short.

    Returns the code of the `Outcome`. A job that can be requeued does not return 75: the scheduler ends it,
    and it runs again.
    """
    outcome = train(request, cpus, surroundings)
    if outcome.wants_more_time:
        sys.stdout.flush()
        allocation().requeue()
    return outcome.code


def train(request: Request, cpus: int, surroundings: Surroundings | None = None) -> Outcome:
    """Train a segment on the nodes of this job, or on this machine.

    Each node has ``cpus`` for all its ranks together. The code of the outcome is 0 if the checkpoint and
    its receipt exist, 75 if training stopped in an orderly way before the target epoch, else that of the
    error, which was printed. Raises `ConfigError` if the layout has more nodes than this job, and
    `LockedError` if another job trains this run and does not stop in time.
    """
    here = allocation()
    _take_over(Path(request.runs), here)
    # On the shared file system: all nodes read it.
    Path(request.runs).mkdir(parents=True, exist_ok=True)
    _remove_leftovers(Path(request.runs))
    prefix = f"{_LAUNCH}{socket.gethostname()}_{os.getpid()}_"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=request.runs) as directory:
        path = Path(directory) / "request.json"
        path.write_text(json.dumps(asdict(request)))
        layout = Layout.parse(request.trained_on)
        code = run_workers("millrace.launch.train", path, layout, cpus, surroundings, _RESTARTS)
        if path.with_suffix(FAILED).exists():
            return Outcome(code)
        stopped = path.with_suffix(".stopped")
        reason = Stop(int(stopped.read_text())) if stopped.exists() else Stop.NO
        if path.with_suffix(CANCELLED).exists():
            reason = Stop.CANCELLED
    # The outputs decide about success, not the exit code of a process.
    if Path(request.checkpoint).is_file() and Path(request.receipt).is_file():
        return Outcome(ExitCode.OK)
    if reason is Stop.NO and code:
        return Outcome(code)
    return Outcome(ExitCode.TRY_AGAIN, reason)


def run_workers(
    module: str,
    request: Path,
    layout: Layout,
    cpus: int,
    surroundings: Surroundings | None = None,
    restarts: int = 0,
) -> int:
    """Run ``python -m module request`` once for every GPU of a layout, and wait for the end.

    The request is a file that all nodes can read. Each node has ``cpus`` for all its ranks together; if one
    dies, all are started again up to ``restarts`` times. Returns 0, or the exit code of an agent or of the
    error that a rank has left beside the request, which is printed.
    """
    here, around = allocation(), surroundings or Surroundings()
    python = "python" if around.container else sys.executable
    agent = [python, "-m", "millrace.launch.agent", f"--nodes={layout.nodes}"]
    agent += [f"--ranks={layout.gpus_per_node}", f"--cpus={cpus}", f"--restarts={restarts}"]
    agent += [f"--endpoint={_endpoint(layout)}"] if layout.nodes > 1 else []
    agent += [f"--run={request.parent.name}", module, str(request.absolute())]
    if around.modules or around.container:
        load = f"module load {' '.join(around.modules)} && " if around.modules else ""
        start = f'{load}exec {around.container} "$@"'
        agent = ["bash", "-lc" if around.modules else "-c", start, "bash", *agent]
    # In a conda environment Snakemake sets the path for the job only, not for its children. The user's own
    # entries stay.
    path = [str(Path(millrace.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    environment |= around.environment
    end = here.end()
    if end is not None:
        own = environment.get(DEADLINE)
        latest = end - _EXIT_RESERVE_S
        environment[DEADLINE] = str(min(float(own), latest) if own else latest)
    # In a session of its own: Ctrl-C reaches the launcher only, which passes it on to the workers.
    process = subprocess.Popen(
        here.on_each_node(agent, layout, cpus),
        env=environment,
        start_new_session=True,
        preexec_fn=dying_with_this(),
    )
    with forwarding_signals(process.send_signal):
        code = process.wait()
    if (error := request.with_suffix(FAILED)).exists():
        message, code = json.loads(error.read_text())
        print(f"error: {message}", file=sys.stderr)
    return code


def _endpoint(layout: Layout) -> str:
    """Host and free port where the nodes of a layout meet: this process is on the first of them."""
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        raise ConfigError(
            f"the name of this node, {host}, does not resolve to an address, and the {layout.nodes} nodes "
            f"of {layout} meet there: name it in /etc/hosts or DNS, or choose a layout of one node"
        ) from None
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{host}:{probe.getsockname()[1]}"


def _take_over(runs: Path, here: Allocation) -> None:
    """End another job that still trains this run.

    Its Snakemake was killed and has forgotten it, otherwise this job would not have been submitted.
    """
    for lock in runs.glob("*/owner.json"):
        owner = read_owner(lock)
        if owner is not None and not owner.job and not here.job:
            _await_stopping(runs, lock)
        if owner is None or not owner.job or not here.job or owner.job == here.job:
            continue
        jobs = queue(here.scheduler)
        end = time.monotonic() + _TAKE_OVER_S
        state = jobs.jobs([owner.job])[owner.job].state
        if not state.is_over:
            print(f"job {owner.job} still trains {lock.parent}: it is asked to save and stop")
            jobs.cancel([owner.job])
        while not state.is_over:
            if time.monotonic() > end:
                raise LockedError(
                    f"{lock.parent}: job {owner.job} trains this run and has not stopped within "
                    f"{_TAKE_OVER_S:.0f} s; cancel it and run the same command again"
                )
            time.sleep(1)
            state = jobs.jobs([owner.job])[owner.job].state
        if read_owner(lock) == owner:
            lock.unlink(missing_ok=True)


def _await_stopping(runs: Path, lock: Path) -> None:
    """Wait for a training of this machine that has been asked to stop, as when its Snakemake was killed."""
    end = time.monotonic() + _TAKE_OVER_S
    while (owner := read_owner(lock)) and owner.is_alive(lock, time.time()):
        if not any(runs.glob(f"{_LAUNCH}*/*{CANCELLED}")) or time.monotonic() > end:
            return  # it trains on: the store refuses a second one
        time.sleep(0.2)


def _remove_leftovers(runs: Path) -> None:
    """Remove what launchers of this run left that were killed: of this machine, or a day old."""
    for path in runs.glob(f"{_LAUNCH}*"):
        made = _MADE_BY.fullmatch(path.name)
        with suppress(OSError):
            here = made is not None and made["host"] == socket.gethostname()
            old = time.time() - path.stat().st_mtime > _OLD_S
            if old or (made and here and not psutil.pid_exists(int(made["process"]))):
                shutil.rmtree(path, ignore_errors=True)
