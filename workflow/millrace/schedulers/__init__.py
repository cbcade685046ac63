"""Batch schedulers: SLURM, PBS Pro, none."""

import os

from millrace.errors import ConfigError
from millrace.schedulers.base import Allocation, Job, Queue, SchedulerError, State
from millrace.schedulers.local import LocalAllocation
from millrace.schedulers.pbs import PbsAllocation, PbsQueue
from millrace.schedulers.slurm import SlurmAllocation, SlurmQueue

__all__ = ["Allocation", "Job", "Queue", "SchedulerError", "State", "allocation", "queue"]

_QUEUES: dict[str, type[Queue]] = {"slurm": SlurmQueue, "pbs": PbsQueue}


def allocation() -> Allocation:
    """Tell from the environment which job this process runs in."""
    if job := os.environ.get("SLURM_JOB_ID"):
        return SlurmAllocation(job)
    if os.environ.get("PBS_JOBID"):
        return PbsAllocation()
    return LocalAllocation()


def queue(scheduler: str) -> Queue:
    """Queue of a scheduler; raises `ConfigError` for one that is not known."""
    if scheduler not in _QUEUES:
        raise ConfigError(f"scheduler {scheduler!r}: expected one of {', '.join(_QUEUES)}")
    return _QUEUES[scheduler]()
