"""What became of the time that was allocated: from the stores, `sacct`, and Snakemake's benchmarks."""

import csv
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from millrace.files import atomic_write
from millrace.runs.display import duration, make_table
from millrace.runs.inventory import Run
from millrace.training.usage import PHASES, read_sessions

_TIMEOUT_S = 60.0
_FORMAT = "JobIDRaw,State,Submit,Start,End,ElapsedRaw,TotalCPU,NCPUS,MaxRSS,AllocTRES"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Clocks of nodes, and times in whole seconds.
_SLACK_S = 60.0


@dataclass(frozen=True)
class Allocation:
    """What a job was given, and what it used; None: not told."""

    job: str
    state: str = ""
    start: float = 0.0
    """Seconds since 1970."""
    end: float = float("inf")
    elapsed_s: float | None = None
    queued_s: float | None = None
    cpu_s: float | None = None
    cpus: int | None = None
    memory: float | None = None
    """Bytes that the largest task used."""
    memory_given: float | None = None
    """Bytes on each node."""


@dataclass(frozen=True)
class Efficiency:
    """One row: a job, or a session without one. Times are in seconds, shares between 0 and 1."""

    run: str
    sessions: str
    job: str
    state: str
    ranks: int
    device: str
    queued_s: float | None
    allocated_s: float
    source: str
    """Where ``allocated_s`` comes from: sacct, benchmark, or the session itself."""
    starting_s: float
    training_s: float
    validating_s: float
    saving_s: float
    samples: float
    cpu_s: float | None
    """CPU time used."""
    cpu_share: float | None
    """Of that given."""
    memory: float | None
    """Bytes that the largest task used."""
    memory_share: float | None
    """Of those given on a node."""

    @property
    def training_share(self) -> float:
        """Training steps of what was allocated."""
        return self.training_s / self.allocated_s if self.allocated_s else 0.0

    @property
    def other_s(self) -> float:
        """What no session accounts for: start of the job, publishing, work that a kill took back."""
        spent = sum(getattr(self, f"{phase}_s") for phase in PHASES)
        return max(0.0, self.allocated_s - spent)

    @property
    def samples_per_rank_hour(self) -> float:
        """Samples trained on, per hour of one GPU, or of one process where there is none."""
        hours = self.allocated_s * self.ranks / 3600
        return self.samples / hours if hours else 0.0


def measure(
    runs: Iterable[Run], results: Path, benchmarks: Path, accounting: bool = True
) -> list[Efficiency]:
    """Account for all sessions that are over.

    Parameters
    ----------
    runs : iterable of Run
    results, benchmarks : Path
        Where Snakemake puts receipts and its own measurements.
    accounting : bool
        Ask `sacct`, if it is there.
    """
    ended = [(run, _ended(run)) for run in runs]
    ids = {session["job"] for _, sessions in ended for session in sessions if session["job"]}
    jobs = ask_accounting(sorted(ids)) if accounting and ids else []
    rows = []
    for run, sessions in ended:
        measured = _benchmarks(run, results, benchmarks)
        for group, allocation in _grouped(sessions, jobs):
            rows.append(_row(run, group, allocation or measured.get(group[-1]["started"])))
    return rows


def ask_accounting(ids: Sequence[str]) -> list[Allocation]:
    """Jobs as `sacct` remembers them, each start of one that was queued again; empty without answer."""
    command = ["sacct", "-n", "-P", "-D", "-j", ",".join(ids), "-o", _FORMAT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_accounting(done.stdout) if done.returncode == 0 else []


def parse_accounting(text: str) -> list[Allocation]:
    """Read lines of `sacct`: those of jobs, with the memory of the largest of their steps."""
    jobs: list[Allocation] = []
    steps: list[tuple[str, float | None, float | None]] = []
    for line in text.splitlines():
        name, state, submit, start, end, elapsed, cpu, cpus, memory, tres = line.split("|")
        if "." in name:
            steps.append((name.split(".")[0], _time(start), size_of(memory)))
            continue
        begun = _time(start)
        if begun is None:  # it never started
            continue
        submitted = _time(submit)
        jobs.append(
            Allocation(
                name,
                state.split()[0],
                begun,
                _time(end) or float("inf"),
                float(elapsed),
                None if submitted is None else max(0.0, begun - submitted),
                seconds_of(cpu),
                int(cpus),
                None,
                _memory_of_node(tres),
            )
        )
    return [replace(job, memory=max(_of_job(job, steps), default=None)) for job in jobs]


def _of_job(
    job: Allocation, steps: Iterable[tuple[str, float | None, float | None]]
) -> Iterator[float]:
    """Memory of the steps of a start of a job."""
    for name, start, memory in steps:
        if name == job.job and start is not None and job.start <= start <= job.end:
            yield from () if memory is None else (memory,)


def seconds_of(text: str) -> float | None:
    """Seconds of ``[days-][hours:]minutes:seconds[.fraction]``."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):([\d.]+)", text)
    if match is None:
        return None
    days, hours, minutes = (int(group or 0) for group in match.groups()[:3])
    return 86400 * days + 3600 * hours + 60 * minutes + float(match[4])


def size_of(text: str) -> float | None:
    """Bytes of a size such as ``3312K`` or ``1.50G``."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return float(match[1]) * _UNITS[match[2]] if match else None


def write_csv(rows: Sequence[Efficiency], path: Path) -> None:
    """Write all columns; raises `OutputError` if the file system refuses it."""
    derived = ("other_s", "training_share", "samples_per_rank_hour")
    names = [field.name for field in fields(Efficiency)]
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, *derived])
        writer.writeheader()
        for row in rows:
            writer.writerow(asdict(row) | {name: getattr(row, name) for name in derived})


def view(rows: Sequence[Efficiency]) -> Table:
    """One row a job, and their sum."""
    table = make_table(
        "run", "session", "job", "state", ">ranks", ">queued", ">allocated", ">starting",
        ">training", ">validating", ">saving", ">other", ">CPU", ">memory", ">samples/GPU-h",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.run, row.sessions, row.job or "–", row.state or "–", str(row.ranks),
            "–" if row.queued_s is None else duration(row.queued_s),
            duration(row.allocated_s), *_shares(row, row.allocated_s),
            _percent(row.cpu_share), _percent(row.memory_share),
            f"{row.samples_per_rank_hour:,.0f}",
        )  # fmt: skip
    if len(rows) > 1:
        total = sum(row.allocated_s * row.ranks for row in rows)
        trained = sum(row.training_s * row.ranks for row in rows)
        samples = sum(row.samples for row in rows)
        table.add_section()
        table.add_row(
            "all, weighted by ranks", "", "", "", "", "", "", "",
            _percent(trained / total if total else None), "", "", "", "", "",
            f"{3600 * samples / total:,.0f}" if total else "–",
        )  # fmt: skip
    return table


def _shares(row: Efficiency, allocated_s: float) -> list[str]:
    seconds = [getattr(row, f"{phase}_s") for phase in (*PHASES, "other")]
    return [_percent(value / allocated_s if allocated_s else None) for value in seconds]


def _ended(run: Run) -> list[dict[str, Any]]:
    sessions = read_sessions(run.path)
    return sessions[:-1] if run.holder else sessions


def _grouped(
    sessions: Sequence[dict[str, Any]], jobs: Sequence[Allocation]
) -> list[tuple[list[dict[str, Any]], Allocation | None]]:
    """Sessions that ran in the same job together: a rank that dies makes all start again."""
    groups: list[tuple[list[dict[str, Any]], Allocation | None]] = []
    for session in sessions:
        found = [
            job
            for job in jobs
            if job.job == session["job"]
            and job.start - _SLACK_S <= session["begun"] <= job.end + _SLACK_S
        ]
        job = found[-1] if found else None
        if job is not None and groups and groups[-1][1] == job:
            groups[-1][0].append(session)
        else:
            groups.append(([session], job))
    return groups


def _row(run: Run, sessions: Sequence[Mapping[str, Any]], given: Allocation | None) -> Efficiency:
    spent = {phase: sum(s["seconds"][phase] for s in sessions) for phase in PHASES}
    steps = sum(session["end_step"] - session["step"] for session in sessions)
    first, last = sessions[0], sessions[-1]
    numbers = list(dict.fromkeys(str(session["session"]) for session in sessions))
    source = "session" if given is None else "sacct" if given.job else "benchmark"
    job = given or Allocation("")
    allocated = max(sum(spent.values()), job.elapsed_s or 0.0)
    return Efficiency(
        run=run.name,
        sessions=numbers[0] if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}",
        job=first["job"] or "",
        state=job.state,
        ranks=last["ranks"],
        device=last["device"],
        queued_s=job.queued_s,
        allocated_s=allocated,
        source=source,
        **{f"{phase}_s": seconds for phase, seconds in spent.items()},
        samples=steps * _samples_per_step(run),
        cpu_s=job.cpu_s,
        cpu_share=_ratio(job.cpu_s, job.cpus and job.cpus * allocated),
        memory=job.memory,
        memory_share=_ratio(job.memory, job.memory_given),
    )


def _samples_per_step(run: Run) -> float:
    """Samples of a mean step: the last one of an epoch may be smaller."""
    if not run.history:
        return 0.0
    last = run.history[-1]
    return last["samples_per_second"] * last["seconds"] * last["epoch"] / last["step"]


def _benchmarks(run: Run, results: Path, benchmarks: Path) -> dict[str, Allocation]:
    """What Snakemake measured of the jobs that reached their milestone, by the start of the session."""
    found = {}
    for path in results.joinpath("train", *run.parts[:3]).glob("epoch_*.json"):
        table = benchmarks.joinpath("train_segment", *run.parts[:3], f"{path.stem}.tsv")
        try:
            receipt = json.loads(path.read_text())
            with table.open() as file:
                *_, line = csv.DictReader(file, delimiter="\t")
            if receipt["identity"] != run.run_hash:
                continue
            started = receipt["sessions"][-1]["started"]
            found[started] = Allocation(
                "",
                elapsed_s=float(line["s"]),
                cpu_s=float(line["cpu_time"]),
                memory=2**20 * float(line["max_rss"]),
            )
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            continue
    return found


def _memory_of_node(tres: str) -> float | None:
    given = dict(entry.split("=", 1) for entry in tres.split(",") if "=" in entry)
    total = size_of(given.get("mem", ""))
    return None if total is None else total / int(given.get("node", 1))


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # "Unknown", "None"
        return None


def _ratio(used: float | None, given: float | None) -> float | None:
    return used / given if used is not None and given else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
