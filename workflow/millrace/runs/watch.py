"""Live status of all runs, from their stores and from the scheduler."""

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from millrace.cluster.display import make_table
from millrace.errors import DataError
from millrace.runs.display import format_duration, format_number
from millrace.runs.inventory import Run, find_runs, newest_of_family
from millrace.runs.queue_status import Jobs, submitted_jobs
from millrace.schedulers import Job, Queue, State
from millrace.training.owner import OwnerRecord, read_owner
from millrace.training.receipt import read_receipt
from millrace.training.usage import read_sessions, read_target

# An epoch that takes this much longer than the others has stalled.
_STALLED_AFTER, _STALLED_AT_LEAST_S = 3.0, 600.0
_STYLES = {
    "pending": "yellow", "running": "green", "idle": "", "done": "blue", "stalled": "bold yellow",
    "failed": "bold red",
}  # fmt: skip


@dataclass(frozen=True)
class RunStatus:
    """Status of a run."""

    name: str
    """``experiment/layout/seed<n>/<run hash>``; without the hash before its first start."""
    state: str
    """pending, running, idle, done, stalled or failed."""
    epoch: int = 0
    milestone: int | None = None
    """Next milestone epoch, which is trained to."""
    final: int | None = None
    """Last configured epoch."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The newest line of ``metrics.jsonl``."""
    epoch_s: float | None = None
    """Seconds of an epoch, with validation and saving."""
    since_s: float = 0.0
    """Seconds since the newest epoch ended."""
    sessions: int = 0
    job: str = ""
    node: str = ""
    end: float | None = None
    """End of the job's walltime, in seconds since 1970."""
    reason: str = ""
    """Why the run waits, or what happened."""

    def left_s(self, target: int | None) -> float | None:
        """Return the seconds until the end of an epoch; None: not running, or not known."""
        if self.state != "running" or target is None or self.epoch_s is None:
            return None
        return max(0.0, (target - self.epoch) * self.epoch_s - min(self.since_s, self.epoch_s))


class Watcher:
    """Reads the stores below ``root`` and the outputs below ``results`` each time, and asks the scheduler.

    The scheduler is asked now and then, and waited for ``patience_s`` each time; without a queue only the
    stores are read.
    """

    def __init__(
        self, root: Path, results: Path, queue: Queue | None = None, patience_s: float = 1.0
    ) -> None:
        self._root, self._results = root, results
        self._jobs, self._patience_s = Jobs(queue), patience_s

    def look(self, now: float) -> list[RunStatus]:
        """Return the status of the newest run of each family, and of those that wait for their first start.

        Runs in use that are not the newest of their family are returned as well.
        """
        runs = find_runs(self._root) if self._root.is_dir() else []
        newest = newest_of_family(runs)
        runs = [run for run in runs if run is newest[run.family] or run.holder]
        submitted = submitted_jobs(Path(".snakemake"))
        owners = {run.path: read_owner(run.path / "owner.json") for run in runs}
        ids = [owner.job for owner in owners.values() if owner] + list(submitted.values())
        self._jobs.ask(ids, self._patience_s)
        found = [
            self._status(run, owners[run.path], submitted.pop(run.family, ""), now) for run in runs
        ]
        return found + [self._waiting(family, job) for family, job in sorted(submitted.items())]

    def render(self, now: float) -> Group:
        """Return a table of the runs, and below it the state of the scheduler and a summary."""
        runs = self.look(now)
        lines: list[Table | Text] = [_table(runs, now)]
        if self._jobs.problem:
            text = f"the scheduler does not answer: {self._jobs.problem}"
            lines.append(Text(text, style="yellow"))
        counts = Counter(run.state for run in runs)
        total = ", ".join(f"{counts[state]} {state}" for state in _STYLES if counts[state])
        lines.append(
            Text(f"{time.strftime('%H:%M:%S', time.localtime(now))}  {total or 'no runs'}")
        )
        return Group(*lines)

    def _waiting(self, family: str, job: str) -> RunStatus:
        seen = self._jobs.get(job) or Job(job, State.UNKNOWN)
        state = {State.FAILED: "failed", State.RUNNING: "running"}.get(seen.state, "pending")
        nodes = ", ".join(seen.nodes)
        return RunStatus(family, state, job=job, node=nodes, end=seen.end, reason=seen.reason)

    def _status(self, run: Run, owner: OwnerRecord | None, submitted: str, now: float) -> RunStatus:
        alive = owner is not None and owner.is_alive(run.path / "owner.json", now)
        owned = owner.job if owner else ""
        job = owned if alive else submitted or owned
        seen = self._jobs.get(job) if job else None
        history = run.history
        last = history[-1] if history else {}
        epoch = max(last.get("epoch", 0), run.newest.epoch if run.newest else 0)
        milestone, final = read_target(run.path)
        sessions = read_sessions(run.path)
        begun = sessions[-1]["begun"] if sessions else 0.0
        with contextlib.suppress(OSError):
            begun = max((run.path / "metrics.jsonl").stat().st_mtime, begun)
        epoch_s = _seconds_of_epoch(history, sessions)
        state, reason = _state(alive, owner is not None, seen, epoch, final)
        if state == "idle" and self._stopped_early(run):
            state, reason = "done", "stopped early"
        since = max(0.0, now - begun)
        if state == "running" and epoch_s is not None:
            limit = max(_STALLED_AFTER * epoch_s, _STALLED_AT_LEAST_S)
            if since > limit:
                state, reason = "stalled", f"no epoch for {format_duration(since)}"
        return RunStatus(
            name=run.name,
            state=state,
            epoch=epoch,
            milestone=milestone,
            final=final,
            record=last,
            epoch_s=epoch_s,
            since_s=since,
            sessions=max(len(sessions), last.get("session", 0)),
            job=job,
            node=", ".join(seen.nodes) if seen else owner.host if owner and alive else "",
            end=seen.end if seen and seen.state is State.RUNNING else None,
            reason="; ".join(filter(None, [reason, *_damaged(run)])),
        )

    def _stopped_early(self, run: Run) -> bool:
        """Whether a receipt of this run says that it stopped early."""
        folder = self._results.joinpath("train", *run.parts[:3])
        for path in folder.glob("epoch_*.json"):
            try:
                receipt = read_receipt(path, ["identity"])
            except DataError:
                continue
            if receipt["identity"] == run.run_hash and receipt.get("stopped_early"):
                return True
        return False


def _damaged(run: Run) -> list[str]:
    return [f"{path.name} is damaged" for path, problem in run.records.items() if problem]


def _table(runs: Sequence[RunStatus], now: float) -> Table:
    table = make_table(
        "run", "state", ">epoch", ">loss", ">validation", ">samples/s", ">milestone in", ">all in",
        "job", "node", ">job ends in", ">sessions", "why",
    )  # fmt: skip
    for run in runs:
        rate = run.record.get("samples_per_second") if run.state == "running" else None
        table.add_row(
            run.name,
            Text(run.state, style=_STYLES[run.state]),
            str(run.epoch or "–") if run.final is None else f"{run.epoch} of {run.final}",
            format_number(run.record.get("train_loss")),
            format_number(run.record.get("validation_loss")),
            "–" if rate is None else f"{rate:.0f}",
            format_duration(run.left_s(run.milestone)),
            format_duration(run.left_s(run.final)),
            run.job or "–",
            run.node or "–",
            format_duration(None if run.end is None else max(0.0, run.end - now)),
            str(run.sessions or "–"),
            run.reason,
        )
    return table


def follow(watcher: Watcher, interval_s: float, console: Console) -> None:
    """Show the table and update it until Ctrl-C."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(watcher.render(time.time()), console=console, auto_refresh=False) as live,
    ):
        while True:
            time.sleep(interval_s)
            live.update(watcher.render(time.time()), refresh=True)


def _state(
    alive: bool, owned: bool, job: Job | None, epoch: int, final: int | None
) -> tuple[str, str]:
    """State of a run, apart from stalling, and the reason."""
    if alive:
        return "running", ""
    if final is not None and epoch >= final:
        return "done", ""
    if job is not None and job.state is State.RUNNING:
        return "running", "starting"
    if job is not None and job.state is State.PENDING:
        return "pending", job.reason
    if job is not None and job.state is State.FAILED:
        return "failed", job.reason or "its job failed"
    if owned:
        return "failed", "its process was killed; the same command continues it"
    return "idle", ""


def _seconds_of_epoch(
    history: Sequence[Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]]
) -> float | None:
    """Median over the last epochs of the newest session, with validation and saving."""
    if not history:
        return None
    session = history[-1]["session"]
    seconds = statistics.median([r["seconds"] for r in history if r["session"] == session][-9:])
    spent = sessions[-1]["seconds"] if sessions else {}
    training = spent.get("training", 0.0)
    besides = spent.get("validating", 0.0) + spent.get("saving", 0.0)
    return seconds * (1 + besides / training) if training > 0 else seconds
