"""Where all runs stand: the stores, and the scheduler's word on their jobs."""

import contextlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from millrace.runs.display import duration, make_table, number
from millrace.runs.inventory import Run, find_runs
from millrace.runs.queue_status import Jobs, submitted_jobs
from millrace.schedulers import Job, Queue, State
from millrace.training.owner import Record, read_owner
from millrace.training.usage import read_sessions, read_target

# An epoch that takes so much longer than the others is not slow, it hangs.
_STALLED_AFTER, _STALLED_AT_LEAST_S = 3.0, 600.0
_STYLES = {
    "pending": "yellow", "running": "green", "idle": "", "done": "blue", "stalled": "bold yellow",
    "failed": "bold red",
}  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    name: str
    """``experiment/layout/seed<n>/<run hash>``; without the hash before its first start."""
    state: str
    """pending, running, idle, done, stalled or failed."""
    epoch: int = 0
    milestone: int | None = None
    """Epoch that is trained to now."""
    final: int | None = None
    """Last epoch that is configured."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The newest line of ``metrics.jsonl``."""
    epoch_s: float | None = None
    """Seconds that an epoch takes, with validation and saving."""
    since_s: float = 0.0
    """Seconds since the newest epoch ended."""
    sessions: int = 0
    job: str = ""
    node: str = ""
    end: float | None = None
    """When the job's time is over."""
    reason: str = ""
    """Why it waits, or what happened."""

    def left_s(self, target: int | None) -> float | None:
        """Seconds until the end of an epoch, if that can be told and it is running."""
        if self.state != "running" or target is None or self.epoch_s is None:
            return None
        return max(0.0, (target - self.epoch) * self.epoch_s - min(self.since_s, self.epoch_s))


class Watcher:
    """Looks at the stores each time, and at the scheduler now and then.

    Parameters
    ----------
    root, results : Path
        Where the stores and the outputs are.
    queue : Queue, optional
        The scheduler; none: only the stores are looked at.
    patience_s : float
        How long to wait for the scheduler each time.
    snakemake : Path
        Where Snakemake notes which jobs it has submitted.
    """

    def __init__(
        self,
        root: Path,
        results: Path,
        queue: Queue | None = None,
        patience_s: float = 1.0,
        snakemake: Path = Path(".snakemake"),
    ) -> None:
        self._root, self._results, self._snakemake = root, results, snakemake
        self._jobs, self._patience_s = Jobs(queue), patience_s

    def look(self, now: float) -> list[Standing]:
        """All runs, the newest run hash of each, and those that wait for their first start."""
        runs = _newest(find_runs(self._root)) if self._root.is_dir() else []
        submitted = submitted_jobs(self._snakemake)
        owners = {run.path: read_owner(run.path / "owner.json") for run in runs}
        ids = [owner.job for owner in owners.values() if owner] + list(submitted.values())
        self._jobs.ask(ids, self._patience_s)
        standings = [
            self._standing(run, owners[run.path], submitted.pop("/".join(run.parts[:3]), ""), now)
            for run in runs
        ]
        return standings + [self._waiting(family, job) for family, job in sorted(submitted.items())]

    def view(self, now: float) -> Group:
        """Look, and make a table of what is seen."""
        standings = self.look(now)
        return view(standings, self._jobs.problem, now)

    def _waiting(self, family: str, job: str) -> Standing:
        seen = self._jobs.get(job) or Job(job, State.UNKNOWN)
        state = {State.FAILED: "failed", State.RUNNING: "running"}.get(seen.state, "pending")
        return Standing(
            family, state, job=job, node=", ".join(seen.nodes), end=seen.end, reason=seen.reason
        )

    def _standing(self, run: Run, owner: Record | None, submitted: str, now: float) -> Standing:
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
        ended = max(_time_of(run.path / "metrics.jsonl"), begun)
        epoch_s = _seconds_of_epoch(history, sessions)
        state, reason = _state(alive, owner is not None, seen, epoch, final)
        if state == "idle" and self._stopped_early(run):
            state, reason = "done", "stopped early"
        since = max(0.0, now - ended)
        if state == "running" and epoch_s is not None:
            limit = max(_STALLED_AFTER * epoch_s, _STALLED_AT_LEAST_S)
            if since > limit:
                state, reason = "stalled", f"no epoch for {duration(since)}"
        return Standing(
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
            reason=reason,
        )

    def _stopped_early(self, run: Run) -> bool:
        """Whether a receipt of this run says that more epochs do not help."""
        folder = self._results.joinpath("train", *run.parts[:3])
        for path in folder.glob("epoch_*.json"):
            try:
                receipt = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if receipt.get("identity") == run.run_hash and receipt.get("stopped_early"):
                return True
        return False


def view(standings: Sequence[Standing], problem: str, now: float) -> Group:
    """The table, and below it what the scheduler did not tell."""
    made = make_table(
        "run", "state", ">epoch", ">loss", ">validation", ">samples/s", ">milestone in", ">all in",
        "job", "node", ">job ends in", ">sessions", "why",
    )  # fmt: skip
    for one in standings:
        rate = one.record.get("samples_per_second")
        made.add_row(
            one.name,
            Text(one.state, style=_STYLES[one.state]),
            _of(one.epoch, one.final),
            number(one.record.get("train_loss")),
            number(one.record.get("validation_loss")),
            "–" if rate is None or one.state != "running" else f"{rate:.0f}",
            _span(one.left_s(one.milestone)),
            _span(one.left_s(one.final)),
            one.job or "–",
            one.node or "–",
            _span(None if one.end is None else max(0.0, one.end - now)),
            str(one.sessions) if one.sessions else "–",
            one.reason,
        )
    lines: list[Table | Text] = [made]
    if problem:
        lines.append(Text(f"the scheduler does not answer: {problem}", style="yellow"))
    counts = {s: sum(one.state == s for one in standings) for s in _STYLES}
    total = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    lines.append(Text(f"{time.strftime('%H:%M:%S', time.localtime(now))}  {total or 'no runs'}"))
    return Group(*lines)


def follow(watcher: Watcher, interval_s: float, console: Console) -> None:
    """Keep the table up to date, until Ctrl-C."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(watcher.view(time.time()), console=console, auto_refresh=False) as live,
    ):
        while True:
            time.sleep(interval_s)
            live.update(watcher.view(time.time()), refresh=True)


def _newest(runs: Sequence[Run]) -> list[Run]:
    """Of each experiment, layout and seed the run hash that changed last, and those in use."""
    newest: dict[tuple[str, ...], Run] = {}
    for run in runs:
        family = run.parts[:3]
        if family not in newest or run.changed > newest[family].changed:
            newest[family] = run
    return [run for run in runs if run is newest[run.parts[:3]] or run.holder]


def _state(
    alive: bool, owned: bool, job: Job | None, epoch: int, final: int | None
) -> tuple[str, str]:
    """State of a run without regard to its pace, and why."""
    if alive:
        return "running", ""
    if final is not None and epoch >= final:
        return "done", ""
    if job is not None and job.state in (State.PENDING, State.RUNNING):
        starts = job.state is State.RUNNING
        return ("running", "starting") if starts else ("pending", job.reason)
    if job is not None and job.state is State.FAILED:
        return "failed", job.reason or "its job failed"
    if owned:
        return "failed", "its process was killed; the same command continues it"
    return "idle", ""


def _seconds_of_epoch(
    history: Sequence[Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]]
) -> float | None:
    """Median over the last epochs of this session or the one before, with what is not training."""
    if not history:
        return None
    session = history[-1]["session"]
    seconds = statistics.median([r["seconds"] for r in history if r["session"] == session][-9:])
    spent = sessions[-1]["seconds"] if sessions else {}
    training = spent.get("training", 0.0)
    besides = spent.get("validating", 0.0) + spent.get("saving", 0.0)
    return seconds * (1 + besides / training) if training > 0 else seconds


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _of(epoch: int, final: int | None) -> str:
    return f"{epoch} of {final}" if final is not None else str(epoch) if epoch else "–"


def _span(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)
