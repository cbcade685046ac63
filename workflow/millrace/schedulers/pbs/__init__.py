"""PBS Pro and OpenPBS: the job from inside, the queue from outside, and three commands for Snakemake."""

from millrace.schedulers.pbs.allocation import PbsAllocation
from millrace.schedulers.pbs.queue import PbsQueue

__all__ = ["PbsAllocation", "PbsQueue"]
