"""Checks inside jobs that the doctor submits itself and waits for."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from millrace.cluster import Cluster
from millrace.doctor.checks import Check, facts_of
from millrace.doctor.inside import RULE, prepare
from millrace.errors import UserError
from millrace.layout import Layout
from millrace.schedulers import Job, Queue, State, queue

MINUTES = 15
"""Time that the jobs ask for: short ones start sooner."""
_EVERY_S = 10.0
# Another client of the file system may learn of a new file this late.
_VISIBLE_AFTER_S = 60.0


@dataclass(frozen=True)
class _Submitted:
    """A job on its way."""

    layout: Layout
    job: str
    folder: Path

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    @property
    def log(self) -> Path:
        return self.folder / "job.log"


def check_in_jobs(
    cluster: Cluster,
    layouts: Sequence[Layout],
    directory: Path,
    patience_s: float,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Layout, list[Check]]]:
    """Submit the checks of layouts as short jobs, and give what each says when it is over.

    Parameters
    ----------
    cluster : Cluster
    layouts : sequence of Layout
    directory : Path
        For the jobs' logs and what their ranks write; all nodes must see it.
    patience_s : float
        How long the jobs may wait in the queue; then they are cancelled.
    tell : callable
        Takes a line about what is being waited for.
    """
    batch = queue(cluster.scheduler)
    waiting: dict[str, _Submitted] = {}
    since = time.monotonic()
    try:
        for layout in layouts:
            sent = _submit(cluster, layout, directory, batch)
            if isinstance(sent, Check):
                yield layout, [sent]
            else:
                waiting[sent.job] = sent
        while waiting:
            spent = time.monotonic() - since
            seen = batch.jobs(waiting)
            tell("; ".join(_line(waiting[job].layout, told) for job, told in seen.items()))
            for job, told in seen.items():
                late = spent > patience_s + (60 * MINUTES if told.state is State.RUNNING else 0)
                if told.state.is_over:
                    sent = waiting.pop(job)
                    yield sent.layout, _read(sent, told)
                elif late:
                    sent = waiting.pop(job)
                    batch.cancel([job])
                    yield sent.layout, [_too_late(sent, told, spent)]
            if waiting:
                time.sleep(_EVERY_S)
    finally:  # also on Ctrl-C
        batch.cancel(list(waiting))


def _submit(cluster: Cluster, layout: Layout, directory: Path, batch: Queue) -> _Submitted | Check:
    folder = prepare(directory.absolute())
    command = [sys.executable, "-m", "millrace.doctor", "--here", str(folder)]
    command += ["--profile", str(cluster.directory), "--layout", str(layout)]
    try:
        placement = cluster.place(layout, RULE)
        command += ["--cpus", str(placement.cpus_per_node)]
        short = replace(placement, minutes=min(placement.minutes, MINUTES))
        sent = _Submitted(layout, "", folder)
        command += ["--json", str(sent.report)]
        job = batch.submit(command, short.resources(), "millrace-doctor", str(sent.log))
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return Check.failed(
            "job",
            str(error),
            f"Edit {facts_of(cluster)} so that the scheduler takes the job.",
        )
    return replace(sent, job=job)


def _line(layout: Layout, seen: Job) -> str:
    why = f" ({seen.reason})" if seen.reason else ""
    return f"{layout}: job {seen.id} {seen.state.value}{why}"


def _too_late(sent: _Submitted, seen: Job, spent_s: float) -> Check:
    shutil.rmtree(sent.folder, ignore_errors=True)
    return Check.skipped(
        "job",
        f"job {seen.id} was still {seen.state.value} after {spent_s / 60:.0f} min "
        f"({seen.reason or 'no reason given'}) and was cancelled; --patience waits longer",
    )


def _read(sent: _Submitted, seen: Job) -> list[Check]:
    """What a job that is over has said."""
    end = time.monotonic() + _VISIBLE_AFTER_S
    while seen.state is State.DONE and not sent.report.is_file() and time.monotonic() < end:
        next(sent.folder.iterdir(), None)  # listing asks the file server
        time.sleep(1.0)
    if sent.report.is_file():
        (records,) = json.loads(sent.report.read_text())["sections"].values()
        shutil.rmtree(sent.folder, ignore_errors=True)
        where = ", ".join(seen.nodes) or "nodes that are not named"
        return [
            Check.ok("job", f"job {seen.id} on {where}"),
            *(Check.from_json(one) for one in records),
        ]
    return [
        Check.failed(
            "job",
            f"job {seen.id} ended ({seen.reason or seen.state.value}) without a report: "
            f"{_last_words(sent.log)}",
            f"See {sent.log}.",
        )
    ]


def _last_words(log: Path) -> str:
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    except OSError:
        return "it left no log either, so its nodes may not see this folder"
    said = [line for line in lines if line]
    return said[-1] if said else "its log is empty"
