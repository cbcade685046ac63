"""Inside a PBS job: when it ends, its nodes, and how it asks to be started again."""

import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from millrace.errors import ConfigError
from millrace.files import write_json
from millrace.layout import Layout
from millrace.schedulers.base import State
from millrace.schedulers.pbs.queue import PbsQueue

# Set by the job scripts of `millrace.schedulers.pbs.records`.
RECORDS = "MILLRACE_PBS_RECORDS"
"""Absolute directory of the submissions; a job without it has nobody who would submit it again."""
STARTED = "MILLRACE_PBS_STARTED"
"""When the job started, in seconds since 1970 on the clock of its node."""
WALLTIME = "MILLRACE_PBS_WALLTIME_S"
"""The walltime that was asked for, in seconds."""

# pbsdsh gives its processes next to no environment, and a command line can be read by everybody: a
# script in the common directory carries it all. What PBS sets anew for each process must not be carried.
# pbsdsh passes TERM and INT on to its processes, but ends of USR1 and USR2.
_SPREAD = """
mkdir -p {directory}
(
    umask 077
    exec > {script}
    export -p | grep -vE '^declare -x (PBS_(NODENUM|TASKNUM|VNODENUM|MOMPORT|JOBCOOKIE)|TMPDIR)='
    echo cd {here} '|| exit'
    echo exec {command}
)
trap '' USR1 USR2
exec {pbsdsh} -- /bin/bash {script}
"""


class PbsAllocation:
    """The PBS job that this process runs in, see `millrace.schedulers.base.Allocation`.

    Parameters
    ----------
    environment : mapping, optional
        Variables of the job; by default those of this process.
    queue : PbsQueue, optional
        Where to ask for the job.
    """

    scheduler = "pbs"

    def __init__(
        self, environment: Mapping[str, str] | None = None, queue: PbsQueue | None = None
    ) -> None:
        self._environment = os.environ if environment is None else environment
        self._queue = queue or PbsQueue()
        self.job = self._environment.get("PBS_JOBID", "")

    def end(self) -> float | None:
        """When the walltime is over, in seconds since 1970, as PBS tells or as it was asked for."""
        if not self.job:
            return None
        job = self._queue.jobs([self.job])[self.job]
        if job.state is State.RUNNING and job.end is not None:
            return job.end
        started, walltime = (self._environment.get(name) for name in (STARTED, WALLTIME))
        return float(started) + float(walltime) if started and walltime else None

    def on_each_node(self, command: Sequence[str], layout: Layout, cpus_per_node: int) -> list[str]:
        """Command that starts ``command`` on each node: itself on one node, else through pbsdsh.

        Its processes find the environment and working directory that this command is started with.
        All CPUs and GPUs of a chunk are theirs without asking.

        Raises
        ------
        ConfigError
            The job has another number of nodes.
        """
        if layout.nodes == 1:
            return list(command)
        nodes = len(Path(self._environment["PBS_NODEFILE"]).read_text().split())
        if nodes != layout.nodes:
            raise ConfigError(
                f"layout {layout}: needs {layout.nodes} nodes, and PBS job {self.job} has {nodes}; submit "
                f"it with -l select={layout.nodes}:... -l place=scatter"
            )
        directory = self._records()
        script = _SPREAD.format(
            directory=shlex.quote(str(directory / "nodes")),
            # Quoted for the shell of the node, then for the one that writes this.
            here=shlex.quote(shlex.quote(str(Path.cwd()))),
            command=shlex.quote(shlex.join(command)),
            script=shlex.quote(str(directory / "nodes" / f"{self.job}.sh")),
            pbsdsh=shlex.quote(shutil.which("pbsdsh") or "/opt/pbs/bin/pbsdsh"),
        )
        return ["/bin/bash", "-c", script]

    def requeue(self) -> bool:
        """Ask for the same job again once this one has ended.

        Users of PBS cannot requeue their jobs. The job leaves a mark; when Snakemake next asks how the
        job is, `millrace.schedulers.pbs.records` submits it again. False if it was submitted otherwise.
        """
        if not self.job or not self._environment.get(RECORDS):
            return False
        started = float(self._environment.get(STARTED) or time.time())
        write_json(self._records() / "again" / self.job, {"after_s": time.time() - started})
        return True

    def _records(self) -> Path:
        return Path(self._environment.get(RECORDS) or Path(".snakemake", "pbs").absolute())


def asked_again_after(records: Path, job: str) -> float | None:
    """Seconds from the start of a job to its `PbsAllocation.requeue`; None if it did not ask."""
    try:
        return float(json.loads((records / "again" / job).read_text())["after_s"])
    except FileNotFoundError:
        return None
