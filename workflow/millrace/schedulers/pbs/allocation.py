"""A PBS job from inside: its end, its nodes, and its request to be started again."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from millrace.errors import ConfigError
from millrace.files import write_json
from millrace.layout import Layout
from millrace.schedulers.base import State
from millrace.schedulers.pbs.queue import STARTED, PbsQueue

# Set by the job scripts of `millrace.schedulers.pbs.records`.
RECORDS = "MILLRACE_PBS_RECORDS"
"""Absolute directory of the submissions; without it nobody submits the job again."""
WALLTIME = "MILLRACE_PBS_WALLTIME_S"
"""Requested walltime in seconds."""


class PbsAllocation:
    """The PBS job that this process runs in, see `millrace.schedulers.base.Allocation`."""

    scheduler = "pbs"

    def __init__(self) -> None:
        self.job = os.environ.get("PBS_JOBID", "")

    def end(self) -> float | None:
        """Return the end of the walltime, in seconds since 1970, as reported by PBS or as requested."""
        if not self.job:
            return None
        job = PbsQueue().jobs([self.job])[self.job]
        if job.state is State.RUNNING and job.end is not None:
            return job.end
        started, walltime = (os.environ.get(name) for name in (STARTED, WALLTIME))
        return float(started) + float(walltime) if started and walltime else None

    def on_each_node(self, command: Sequence[str], layout: Layout, cpus_per_node: int) -> list[str]:
        """Return a command that starts ``command`` on each node.

        On several nodes `millrace.schedulers.pbs.spread` does so. The processes have the environment and
        the working directory of this one, and all CPUs and GPUs of their chunk.

        Raises
        ------
        ConfigError
            The job has another number of nodes.
        """
        if layout.nodes == 1:
            return list(command)
        nodes = len(Path(os.environ["PBS_NODEFILE"]).read_text().split())
        if nodes != layout.nodes:
            raise ConfigError(
                f"layout {layout}: needs {layout.nodes} nodes, and PBS job {self.job} has {nodes}; submit "
                f"it with -l select={layout.nodes}:... -l place=scatter"
            )
        directory = Path(os.environ.get(RECORDS) or Path(".snakemake", "pbs").absolute()) / "nodes"
        spread = [sys.executable, "-m", "millrace.schedulers.pbs.spread"]
        return [*spread, str(directory), *command]

    def requeue(self) -> bool:
        """Request that the job is submitted again once it has ended.

        Users of PBS cannot requeue their jobs. The job leaves a file; when Snakemake next asks for the
        state of the job, `millrace.schedulers.pbs.records` submits it again. False if Snakemake did not
        submit it.
        """
        if not self.job or not os.environ.get(RECORDS):
            return False
        started = float(os.environ.get(STARTED) or time.time())
        path = Path(os.environ[RECORDS], "again", self.job)
        write_json(path, {"after_s": time.time() - started})
        return True
