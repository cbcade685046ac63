"""Checks inside jobs that the doctor submits and waits for."""

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

_MINUTES = 15  # short jobs start sooner
EVERY_S = 10.0
# A new file may be visible to other clients of the file system after this time.
VISIBLE_AFTER_S = 60.0


@dataclass(frozen=True)
class _Submitted:
    """A submitted job."""

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
    show: Callable[[str], None],
    container: str = "",
) -> Iterator[tuple[Layout, list[Check]]]:
    """Submit the checks of layouts as short jobs, and yield the checks of each when it is over.

    Logs and reports of the jobs lie in a directory that all nodes must see. Jobs are cancelled that wait in
    the queue for longer than ``patience_s``; ``show`` is called with a line on their state. Ranks run in
    ``container``, see `millrace.launch.launcher.Surroundings`.
    """
    batch = queue(cluster.scheduler)
    waiting: dict[str, _Submitted] = {}
    since = time.monotonic()
    try:
        for layout in layouts:
            sent = _submit(cluster, layout, directory, batch, container)
            if isinstance(sent, Check):
                yield layout, [sent]
            else:
                waiting[sent.job] = sent
        while waiting:
            spent = time.monotonic() - since
            jobs = batch.jobs(waiting)
            show("; ".join(_line(waiting[id].layout, job) for id, job in jobs.items()))
            for id, job in jobs.items():
                late = spent > patience_s + (60 * _MINUTES if job.state is State.RUNNING else 0)
                if job.state.is_over:
                    sent = waiting.pop(id)
                    yield sent.layout, _read(sent, job)
                elif late:
                    sent = waiting.pop(id)
                    batch.cancel([id])
                    yield sent.layout, [_too_late(sent, job, spent)]
            if waiting:
                time.sleep(EVERY_S)
    finally:  # also on Ctrl-C
        batch.cancel(list(waiting))


def _submit(
    cluster: Cluster, layout: Layout, directory: Path, batch: Queue, container: str
) -> _Submitted | Check:
    folder = prepare(directory.absolute())
    command = [sys.executable, "-m", "millrace.cli", "doctor", "--here", str(folder)]
    command += ["--profile", str(cluster.directory), "--layout", str(layout)]
    command += ["--container", container] if container else []
    try:
        placement = cluster.place(layout, RULE)
        command += ["--cpus", str(placement.cpus_per_node)]
        short = replace(placement, minutes=min(placement.minutes, _MINUTES))
        sent = _Submitted(layout, "", folder)
        command += ["--json", str(sent.report)]
        job = batch.submit(command, short.resources(), "millrace-doctor", str(sent.log))
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        remedy = f"Edit {facts_of(cluster)} so that the scheduler accepts the job."
        return Check.failed("job", str(error), remedy)
    return replace(sent, job=job)


def _line(layout: Layout, job: Job) -> str:
    why = f" ({job.reason})" if job.reason else ""
    return f"{layout}: job {job.id} {job.state.value}{why}"


def _too_late(sent: _Submitted, job: Job, spent_s: float) -> Check:
    shutil.rmtree(sent.folder, ignore_errors=True)
    return Check.skipped(
        "job",
        f"job {job.id} was still {job.state.value} after {spent_s / 60:.0f} min "
        f"({job.reason or 'no reason given'}) and was cancelled; --patience waits longer",
    )


def _read(sent: _Submitted, job: Job) -> list[Check]:
    """Checks of a job that is over."""
    end = time.monotonic() + VISIBLE_AFTER_S
    while job.state is State.DONE and not sent.report.is_file() and time.monotonic() < end:
        next(sent.folder.iterdir(), None)  # listing asks the file server
        time.sleep(1.0)
    if not sent.report.is_file():
        detail = f"job {job.id} ended ({job.reason or job.state.value}) without a report: "
        return [Check.failed("job", detail + _last_line(sent.log), f"See {sent.log}.")]
    (records,) = json.loads(sent.report.read_text())["sections"].values()
    shutil.rmtree(sent.folder, ignore_errors=True)
    where = ", ".join(job.nodes) or "nodes that are not named"
    return [Check.ok("job", f"job {job.id} on {where}"), *map(Check.from_json, records)]


def _last_line(log: Path) -> str:
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    except OSError:
        return "it left no log either, so its nodes may not see this folder"
    return next((line for line in reversed(lines) if line), "its log is empty")
