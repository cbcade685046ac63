"""What Millrace asks of a batch scheduler: inside a job (`Allocation`) and from outside (`Queue`)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from millrace.errors import UserError
from millrace.layout import Layout


class SchedulerError(UserError):
    """The scheduler refused something, or does not answer."""


class State(Enum):
    """Where a job is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    """Ended, with exit code 0."""
    FAILED = "failed"
    """Ended otherwise: error, walltime, cancelled, node lost."""
    GONE = "gone"
    """The scheduler knows no such job (any more)."""
    UNKNOWN = "unknown"
    """The scheduler did not answer."""

    @property
    def is_over(self) -> bool:
        """Whether the job surely does nothing any more."""
        return self in (State.DONE, State.FAILED, State.GONE)


@dataclass(frozen=True)
class Job:
    """What a scheduler tells of a job."""

    id: str
    state: State
    name: str = ""
    nodes: tuple[str, ...] = ()
    reason: str = ""
    """Why it waits or failed, in the scheduler's words."""
    start: float | None = None
    """When it started or is expected to, in seconds since 1970."""
    end: float | None = None
    """When its walltime ends, or when it ended, in seconds since 1970."""


class Allocation(Protocol):
    """The job that this process runs in."""

    scheduler: str
    """Name of its `Queue`; empty if there is none."""
    job: str
    """Its id; empty outside of any scheduler."""

    def end(self) -> float | None:
        """When the walltime is over, in seconds since 1970; None: never, or it cannot be told."""

    def on_each_node(self, command: Sequence[str], layout: Layout, cpus_per_node: int) -> list[str]:
        """Command that starts ``command`` once on each node of the layout, with its GPUs.

        Raises
        ------
        ConfigError
            The job has no such nodes.
        """

    def requeue(self) -> bool:
        """Have this job run again later; False: that is not possible, and the job should fail."""


class Queue(Protocol):
    """The scheduler, as seen from a login node."""

    def submit(
        self,
        command: Sequence[str],
        resources: Mapping[str, object],
        name: str,
        log: str,
    ) -> str:
        """Submit a command with the resources of a `millrace.cluster.Placement`; returns the job's id.

        Raises
        ------
        SchedulerError
            With the scheduler's words.
        """

    def jobs(self, ids: Iterable[str]) -> dict[str, Job]:
        """Ask for jobs; every id is in the answer."""

    def cancel(self, ids: Iterable[str]) -> None:
        """Remove jobs, waiting or running; those that are gone already are left alone."""
