"""Interface to batch schedulers: a job from inside (`Allocation`), the queue from outside (`Queue`)."""

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from millrace.errors import UserError
from millrace.layout import Layout


class SchedulerError(UserError):
    """The scheduler refused a request, or does not answer."""


class State(Enum):
    """State of a job."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    """Ended, with exit code 0."""
    FAILED = "failed"
    """Ended otherwise: error, walltime, cancelled, node lost."""
    GONE = "gone"
    """The scheduler does not know the job, or does not remember it."""
    UNKNOWN = "unknown"
    """The scheduler did not answer."""

    @property
    def is_over(self) -> bool:
        """Whether the job certainly does not run any more."""
        return self in (State.DONE, State.FAILED, State.GONE)


@dataclass(frozen=True)
class Job:
    """A job as the scheduler describes it."""

    id: str
    state: State
    nodes: tuple[str, ...] = ()
    reason: str = ""
    """Why the job waits or failed, as the scheduler puts it."""
    start: float | None = None
    """Time of the actual or expected start, in seconds since 1970."""
    end: float | None = None
    """Time at which the walltime ends or the job ended, in seconds since 1970."""
    lacked_memory: bool = False
    """Whether it failed because it needed more memory than it had."""


class Allocation(Protocol):
    """The job that this process runs in."""

    scheduler: str
    """Name of its `Queue`; empty if there is none."""
    job: str
    """Id of the job; empty outside of any scheduler."""

    def end(self) -> float | None:
        """Return the end of the walltime in seconds since 1970; None: there is none, or it is not known."""

    def on_each_node(self, command: Sequence[str], layout: Layout, cpus_per_node: int) -> list[str]:
        """Return a command that starts ``command`` once on each node of the layout, with its GPUs.

        Raises
        ------
        ConfigError
            The job does not have the nodes of the layout.
        """

    def requeue(self) -> bool:
        """Have this job run again later; False: that is not possible, and the job should fail."""


class Queue(Protocol):
    """The scheduler, as seen from a login node."""

    def submit(
        self, command: Sequence[str], resources: Mapping[str, object], name: str, log: str
    ) -> str:
        """Submit a command, and return the id of the job.

        Parameters
        ----------
        command : sequence of str
            It runs in the current directory.
        resources : mapping
            See `millrace.cluster.placement.Placement.resources`.
        name : str
            Name of the job.
        log : str
            File of its output.

        Raises
        ------
        SchedulerError
            The scheduler refused the job or does not answer.
        """

    def jobs(self, ids: Iterable[str]) -> dict[str, Job]:
        """Ask for jobs, waiting, running or ended; every id is in the answer."""

    def cancel(self, ids: Iterable[str]) -> None:
        """Cancel jobs, waiting or running; jobs that have ended are ignored."""


def from_here(path: str) -> str:
    """Return the path of a file below the current directory without what is above.

    Schedulers give a meaning to ``%``, ``:`` and other characters, and PBS takes ASCII letters only.
    """
    here = Path.cwd()
    return os.path.relpath(path, here) if Path(path).is_relative_to(here) else path


def run_command(
    *command: str, timeout_s: float = 60.0, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command; its exit code is 127 if there is no such command, 124 if it takes too long."""
    try:
        # Bytes, because a path need not be text in the encoding of this process.
        done = subprocess.run(
            command, input=os.fsencode(stdin), capture_output=True, timeout=timeout_s
        )
        said = [stream.decode(errors="replace") for stream in (done.stdout, done.stderr)]
        return subprocess.CompletedProcess(command, done.returncode, *said)
    except FileNotFoundError:
        code, problem = 127, "command not found"
    except subprocess.TimeoutExpired:
        code, problem = 124, f"no answer within {timeout_s:g} s"
    return subprocess.CompletedProcess(command, code, "", f"{command[0]}: {problem}")
