"""Jobs of runs: which Snakemake has submitted, and what the scheduler says, without waiting for it."""

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

# The scheduler serves many: it is asked this often, whatever the interval of the table.
ASK_EVERY_S = 30.0


def find_queue(profile: Path | None) -> Queue | None:
    """Queue of a profile's cluster; without a profile that of the commands found here, if any.

    Raises
    ------
    ConfigError
        The profile has no facts of a cluster, or wrong ones.
    """
    if profile is not None:
        return queue(Cluster.read(profile.absolute()).scheduler)
    for command, scheduler in (("squeue", "slurm"), ("qstat", "pbs")):
        if shutil.which(command):
            return queue(scheduler)
    return None


class Jobs:
    """What the scheduler said last. It is asked in the background: a busy one may take minutes.

    Parameters
    ----------
    queue : Queue or None
        None: nothing is ever known.
    """

    def __init__(self, queue: Queue | None) -> None:
        self._queue = queue
        self._known: dict[str, Job] = {}
        self._asked: float | None = None
        self._thread: threading.Thread | None = None
        self.problem = ""
        """Why the scheduler did not answer; empty: it did."""

    def get(self, job: str) -> Job | None:
        """What is known of a job."""
        return self._known.get(job)

    def ask(self, ids: Iterable[str], patience_s: float) -> None:
        """Ask for jobs if it is time to, and wait a little for the answer."""
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
            # What a scheduler says in trouble is nothing to end for: the stores tell the rest.
            self.problem = " ".join(str(error).split()) or type(error).__name__


def submitted_jobs(snakemake: Path) -> dict[str, str]:
    """Jobs of training that Snakemake has submitted and not seen to end.

    Snakemake names a file in ``incomplete/`` after each output that a job is to make, in base 64, and
    notes the job's id in it.

    Returns
    -------
    dict
        ``experiment/layout/seed<n>`` to job id.
    """
    folder, found = snakemake / "incomplete", {}
    for path in folder.rglob("*"):
        # Long names are cut into folders that begin with @.
        code = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
        try:
            job = json.loads(path.read_text())["external_jobid"]
            pieces = Path(base64.urlsafe_b64decode(code).decode()).parts
        except (ValueError, KeyError, TypeError, OSError):  # written just now, or something else
            continue
        if job and pieces[:2] == ("results", "train") and len(pieces) == 6:
            found["/".join(pieces[2:5])] = str(job)
    return found
