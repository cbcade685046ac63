"""Jobs of runs: those that Snakemake has submitted, and their state, without waiting for the scheduler."""

import base64
import json
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from millrace.cluster import Cluster
from millrace.errors import UserError
from millrace.schedulers import Job, Queue, queue

# The scheduler serves many users: it is asked this often, whatever the interval of the table.
ASK_EVERY_S = 30.0


def find_queue(profile: Path | None) -> Queue | None:
    """Return the queue of a profile's cluster, or without a profile that of the installed commands, if any.

    Raises `ConfigError` if the profile has no facts of a cluster, or they are wrong.
    """
    if profile is not None:
        return queue(Cluster.read(profile.absolute()).scheduler)
    for command, scheduler in (("squeue", "slurm"), ("qstat", "pbs")):
        if shutil.which(command):
            return queue(scheduler)
    return None


class Jobs:
    """Last answer of the scheduler, which is asked in the background because it may take minutes.

    Without a queue no job is ever known.
    """

    def __init__(self, queue: Queue | None) -> None:
        self._queue = queue
        self._known: dict[str, Job] = {}
        self._asked: float | None = None
        self._thread: threading.Thread | None = None
        self.problem = ""
        """Why the scheduler did not answer; empty: it answered."""

    def get(self, job: str) -> Job | None:
        """Return the last known state of a job."""
        return self._known.get(job)

    def ask(self, ids: Iterable[str], patience_s: float) -> None:
        """Ask for jobs if the last answer is old or lacks one, and wait a little for the answer."""
        wanted = sorted(set(ids) - {""})
        if self._queue is None or not wanted:
            return
        if self._thread is None and self._is_due(wanted):
            self._asked = time.monotonic()
            self._thread = threading.Thread(
                target=self._answer, args=[self._queue, wanted], daemon=True
            )
            self._thread.start()
        if self._thread is not None:
            self._thread.join(patience_s)
            if self._thread.is_alive():
                self.problem = "no answer yet"
            else:
                self._thread = None

    def _is_due(self, wanted: Iterable[str]) -> bool:
        recent = self._asked is not None and time.monotonic() - self._asked < ASK_EVERY_S
        return not recent or any(job not in self._known for job in wanted)

    def _answer(self, queue: Queue, wanted: list[str]) -> None:
        try:
            self._known |= queue.jobs(wanted)
            self.problem = ""
        except (UserError, OSError, ValueError, KeyError) as error:
            # A problem of the scheduler is no reason to end: the rest is known from the stores.
            self.problem = " ".join(str(error).split()) or type(error).__name__


def submitted_jobs(snakemake: Path) -> dict[str, str]:
    """Return the training jobs that Snakemake has submitted and that have not ended.

    For each output of such a job, Snakemake writes a file with the id of the job to ``incomplete/``, whose
    name is that of the output in base 64. The ids are returned by ``experiment/layout/seed<n>``.
    """
    folder, found = snakemake / "incomplete", {}
    for path in folder.rglob("*"):
        # Long names are split into folders that begin with @.
        code = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
        try:
            job = json.loads(path.read_text())["external_jobid"]
            pieces = Path(base64.urlsafe_b64decode(code).decode()).parts
        except (ValueError, KeyError, TypeError, OSError):  # written just now, or something else
            continue
        # Of a module with a prefix there are folders in front.
        if job and pieces[-6:-4] == ("results", "train"):
            found["/".join(pieces[-4:-1])] = str(job)
    return found
