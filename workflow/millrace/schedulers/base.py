"""What Millrace asks of a batch scheduler: inside a job (`Allocation`) and from outside (`Queue`)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from millrace.layout import Layout


class State(Enum):
    """Where a job is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    """Ended, with exit code 0."""
    FAILED = "failed"
    """Ended otherwise: error, walltime, cancelled, node lost."""
    UNKNOWN = "unknown"
    """The scheduler did not answer, or has forgotten the job."""


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

    job: str
    """Its id; empty outside of any scheduler."""

    def end(self) -> float | None:
        """When the walltime is over, in seconds since 1970; None: never, or it cannot be told."""

    def on_each_node(
        self, command: Sequence[str], layout: Layout, cpus_per_node: int
    ) -> list[str]:
        """Command that starts ``command`` once on each node of the layout, with its GPUs."""

    def node_rank(self) -> int:
        """Number of this node among those of the layout, inside of what `on_each_node` started."""

    def first_host(self) -> str:
        """Name of the node with rank 0, inside of what `on_each_node` started."""

    def requeue(self) -> bool:
        """Have this job started again later, with the same id if possible; False: the caller must fail."""


class Queue(Protocol):
    """The scheduler, as seen from a login node."""

    def submit(
        self,
        command: Sequence[str],
        resources: Mapping[str, object],
        name: str,
        log: str,
    ) -> str:
        """Submit a command with the resources of `millrace.cluster`; returns the job's id."""

    def jobs(self, ids: Iterable[str]) -> dict[str, Job]:
        """Ask for jobs; every id is in the answer."""

    def cancel(self, ids: Iterable[str]) -> None:
        """Remove jobs, waiting or running; those that are gone already are left alone."""
