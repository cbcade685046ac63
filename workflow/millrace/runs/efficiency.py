"""Use of the allocated time, CPUs and memory: from the stores, ``sacct``, and Snakemake's benchmarks."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from millrace.cluster.display import make_table
from millrace.errors import DataError
from millrace.files import atomic_write
from millrace.runs.display import format_duration
from millrace.runs.inventory import Run
from millrace.schedulers.base import run_command
from millrace.schedulers.slurm import duration, timestamp
from millrace.training.receipt import read_receipt
from millrace.training.usage import PHASES, read_sessions

_FORMAT = "JobIDRaw,State,Submit,Start,End,ElapsedRaw,TotalCPU,NCPUS,MaxRSS,AllocTRES"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Clocks of nodes differ, and some times are in whole seconds.
_CLOCK_TOLERANCE_S = 60.0


@dataclass(frozen=True)
class JobUsage:
    """What a job was allocated and what it used; None: not known."""

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
    """Allocated bytes on each node."""


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
    """Source of ``allocated_s``: sacct, benchmark, or the session itself."""
    starting_s: float
    training_s: float
    validating_s: float
    saving_s: float
    samples: float
    cpu_s: float | None
    """CPU time used."""
    cpu_share: float | None
    """CPU time used over that allocated."""
    memory: float | None
    """Bytes that the largest task used."""
    memory_share: float | None
    """The same over the bytes allocated on a node."""

    @property
    def training_share(self) -> float:
        """Time of training steps over the allocated time."""
        return self.training_s / self.allocated_s if self.allocated_s else 0.0

    @property
    def other_s(self) -> float:
        """Time outside of all phases: start of the job, publishing, work that was lost by a kill."""
        spent = sum(getattr(self, f"{phase}_s") for phase in PHASES)
        return max(0.0, self.allocated_s - spent)

    @property
    def samples_per_rank_hour(self) -> float:
        """Samples trained on per hour of one rank, which is a GPU or a CPU process."""
        hours = self.allocated_s * self.ranks / 3600
        return self.samples / hours if hours else 0.0


def measure(runs: Iterable[Run], results: Path, benchmarks: Path) -> list[Efficiency]:
    """Account for all sessions that are over, with the receipts and the benchmarks of Snakemake."""
    ended = [(run, _ended(run)) for run in runs]
    ids = {session["job"] for _, sessions in ended for session in sessions if session["job"]}
    jobs = _ask_accounting(sorted(ids)) if ids else []
    rows = []
    for run, sessions in ended:
        measured = _benchmarks(run, results, benchmarks)
        for group, job in _grouped(sessions, jobs):
            rows.append(_row(run, group, job or measured.get(group[-1]["started"])))
    return rows


def parse_accounting(text: str) -> list[JobUsage]:
    """Read the lines of ``sacct``: jobs, each with the memory of the largest of its steps."""
    jobs: list[JobUsage] = []
    steps: list[tuple[str, float, float]] = []
    for line in text.splitlines():
        name, state, submit, start, end, elapsed, cpu, cpus, memory, tres = line.split("|")
        if (started := timestamp(start)) is None:  # it never started
            continue
        if "." in name:
            if (used := parse_bytes(memory)) is not None:
                steps.append((name.split(".")[0], started, used))
            continue
        submitted = timestamp(submit)
        job = JobUsage(
            job=name,
            state=state.split()[0],
            start=started,
            end=timestamp(end) or float("inf"),
            elapsed_s=float(elapsed),
            queued_s=None if submitted is None else max(0.0, started - submitted),
            cpu_s=duration(cpu),
            cpus=int(cpus),
            memory_given=_memory_of_node(tres),
        )
        jobs.append(job)
    # A job that was queued again has several starts under one id.
    peaks = [[m for n, t, m in steps if n == j.job and j.start <= t <= j.end] for j in jobs]
    return [
        replace(job, memory=max(peak, default=None)) for job, peak in zip(jobs, peaks, strict=True)
    ]


def parse_bytes(text: str) -> float | None:
    """Return the bytes of a size such as ``3312K`` or ``1.50G``; None: another text."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return float(match[1]) * _UNITS[match[2]] if match else None


def write_csv(rows: Sequence[Efficiency], path: Path) -> None:
    """Write all columns; raises `OutputError` if the file system refuses them."""
    derived = ("other_s", "training_share", "samples_per_rank_hour")
    names = [field.name for field in fields(Efficiency)]
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, *derived])
        writer.writeheader()
        for row in rows:
            writer.writerow(asdict(row) | {name: getattr(row, name) for name in derived})


def table(rows: Sequence[Efficiency]) -> Table:
    """Return one row for each job, and their sum."""
    made = make_table(
        "run", "session", "job", "state", ">ranks", ">queued", ">allocated", ">starting",
        ">training", ">validating", ">saving", ">other", ">CPU", ">memory", ">samples/GPU-h",
    )  # fmt: skip
    for row in rows:
        seconds = [getattr(row, f"{phase}_s") for phase in (*PHASES, "other")]
        made.add_row(
            row.run, row.sessions, row.job or "–", row.state or "–", str(row.ranks),
            format_duration(row.queued_s), format_duration(row.allocated_s),
            *(_percent(_ratio(s, row.allocated_s)) for s in seconds),
            _percent(row.cpu_share), _percent(row.memory_share),
            f"{row.samples_per_rank_hour:,.0f}",
        )  # fmt: skip
    if len(rows) > 1:
        total = sum(row.allocated_s * row.ranks for row in rows)
        trained = sum(row.training_s * row.ranks for row in rows)
        samples = sum(row.samples for row in rows)
        made.add_section()
        made.add_row(
            "all, weighted by ranks", *[""] * 7, _percent(_ratio(trained, total)), *[""] * 5,
            f"{3600 * samples / total:,.0f}" if total else "–",
        )  # fmt: skip
    return made


def _ended(run: Run) -> list[dict[str, Any]]:
    sessions = read_sessions(run.path)
    return sessions[:-1] if run.holder else sessions


def _ask_accounting(ids: Sequence[str]) -> list[JobUsage]:
    """Jobs as ``sacct`` remembers them; none if it does not answer."""
    done = run_command("sacct", "-n", "-P", "-D", "-j", ",".join(ids), "-o", _FORMAT)
    return parse_accounting(done.stdout) if done.returncode == 0 else []


def _grouped(
    sessions: Sequence[dict[str, Any]], jobs: Sequence[JobUsage]
) -> list[tuple[list[dict[str, Any]], JobUsage | None]]:
    """Sessions by job: if a rank dies, all start again in the same job."""
    groups: list[tuple[list[dict[str, Any]], JobUsage | None]] = []
    for session in sessions:
        found = [
            job
            for job in jobs
            if job.job == session["job"]
            and job.start - _CLOCK_TOLERANCE_S <= session["begun"] <= job.end + _CLOCK_TOLERANCE_S
        ]
        job = found[-1] if found else None
        if job is not None and groups and groups[-1][1] == job:
            groups[-1][0].append(session)
        else:
            groups.append(([session], job))
    return groups


def _row(run: Run, sessions: Sequence[Mapping[str, Any]], given: JobUsage | None) -> Efficiency:
    spent = {phase: sum(s["seconds"][phase] for s in sessions) for phase in PHASES}
    steps = sum(session["end_step"] - session["step"] for session in sessions)
    first, last = sessions[0], sessions[-1]
    numbers = list(dict.fromkeys(str(session["session"]) for session in sessions))
    job = given or JobUsage("")
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
        source="session" if given is None else "sacct" if given.job else "benchmark",
        **{f"{phase}_s": seconds for phase, seconds in spent.items()},
        samples=steps * _samples_per_step(run),
        cpu_s=job.cpu_s,
        cpu_share=_ratio(job.cpu_s, job.cpus and job.cpus * allocated),
        memory=job.memory,
        memory_share=_ratio(job.memory, job.memory_given),
    )


def _samples_per_step(run: Run) -> float:
    """Mean number of samples of a step: the last step of an epoch may have fewer."""
    if not run.history:
        return 0.0
    last = run.history[-1]
    return last["samples_per_second"] * last["seconds"] * last["epoch"] / last["step"]


def _benchmarks(run: Run, results: Path, benchmarks: Path) -> dict[str, JobUsage]:
    """Snakemake's measurements of jobs that reached their milestone, by the start of the session."""
    found = {}
    for path in results.joinpath("train", *run.parts[:3]).glob("epoch_*.json"):
        measured = benchmarks.joinpath("train_segment", *run.parts[:3], f"{path.stem}.tsv")
        try:
            receipt = read_receipt(path, ("sessions",))
            with measured.open() as file:
                *_, line = csv.DictReader(file, delimiter="\t")
            if receipt["identity"] == run.run_hash:
                found[receipt["sessions"][-1]["started"]] = JobUsage(
                    "",
                    elapsed_s=float(line["s"]),
                    cpu_s=float(line["cpu_time"]),
                    memory=2**20 * float(line["max_rss"]),
                )
        except (DataError, OSError, ValueError, KeyError, IndexError, TypeError):
            continue
    return found


def _memory_of_node(tres: str) -> float | None:
    given = dict(entry.split("=", 1) for entry in tres.split(",") if "=" in entry)
    total = parse_bytes(given.get("mem", ""))
    return None if total is None else total / int(given.get("node", 1))


def _ratio(used: float | None, given: float | None) -> float | None:
    return used / given if used is not None and given else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
