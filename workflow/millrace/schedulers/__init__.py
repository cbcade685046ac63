"""Batch schedulers: SLURM, PBS Pro, none."""

import os
import shutil

from millrace.errors import ConfigError
from millrace.schedulers.base import Allocation, Job, Queue, SchedulerError, State
from millrace.schedulers.local import LocalAllocation
from millrace.schedulers.pbs import PbsAllocation, PbsQueue
from millrace.schedulers.slurm import SlurmAllocation, SlurmQueue

__all__ = ["Allocation", "Job", "Queue", "SchedulerError", "State", "allocation", "queue"]

_QUEUES: dict[str, type[Queue]] = {"slurm": SlurmQueue, "pbs": PbsQueue}


def allocation() -> Allocation:
    """Return the job that this process runs in, according to the environment.

    Shells and containers may keep the variables of a job that is over, or of a scheduler that cannot be
    reached from there at all: then this machine is alone.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job and shutil.which("squeue") and SlurmAllocation(job).exists():
        return SlurmAllocation(job)
    if os.environ.get("PBS_JOBID") and shutil.which("qstat"):
        return PbsAllocation()
    return LocalAllocation()


def queue(scheduler: str) -> Queue:
    """Return the queue of a scheduler; raises `ConfigError` if its name is not known."""
    if scheduler not in _QUEUES:
        raise ConfigError(f"scheduler {scheduler!r}: expected one of {', '.join(_QUEUES)}")
    return _QUEUES[scheduler]()
