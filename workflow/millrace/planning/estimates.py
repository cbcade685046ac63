"""What is left of a plan, and what it takes: by what jobs ask for, and by what finished ones took."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from millrace.cluster.placement import MB_PER_GB
from millrace.errors import DataError
from millrace.planning.dry_run import Job
from millrace.planning.raw_sizes import expected_of_sizes
from millrace.systems.base import Block
from millrace.training.receipt import read_receipt

_GB = 2**30


@dataclass(frozen=True)
class Row:
    """Jobs of one rule on one layout. Hours, GB of disk and GPU-hours are sums over the jobs that are left.

    *Asked* is what jobs request, an upper bound; None: nothing is requested, on this machine. *Expected* is
    modelled from finished jobs of the same kind, or of jobs on raw files from the sizes of these; None:
    that is not possible for some of the jobs.
    """

    stage: str
    rule: str
    layout: str
    """Empty: the rule has none."""
    jobs: int
    left: int
    hours_asked: float | None
    hours_expected: float | None
    memory_gb: float | None
    """Asked for on each node, by the job with the most."""
    gpus: int
    """Asked for by a job on all nodes, at most."""
    gpu_hours_asked: float | None
    gpu_hours_expected: float | None
    disk_gb: float | None
    """Size of the outputs, modelled like the hours."""
    memory_expected_gb: float | None
    """Of the job with the most, modelled from the sizes of raw files."""
    by_size: bool
    """Whether something is modelled from the sizes of raw files."""
    request: Mapping[str, Any]
    """What the first of the jobs asks a cluster for; empty on this machine."""
    threads: int


def summarised(
    every: Sequence[Job],
    left: Sequence[Job],
    root: Path,
    datasets: Mapping[str, Block] | None = None,
) -> list[Row]:
    """Rows of a plan, stage by stage in the order in which they are reached.

    ``every`` are all jobs, finished ones included, ``left`` those that would run; ``root`` is the folder
    that their paths start from, and ``datasets`` the section of the configuration, where it is known.
    """
    keys = {tuple(job.output) for job in left}
    spans = _spans(every)

    def is_left(job: Job) -> bool:
        return tuple(job.output) in keys

    def begin(job: Job) -> tuple[int, int]:
        return spans.get(job.output[0], (0, 1))

    def epochs(job: Job) -> int:
        return begin(job)[1] - begin(job)[0]

    done = [job for job in every if not is_left(job)]
    seconds = _medians(done, lambda job: _each(_seconds(job, *begin(job), root), epochs(job)))
    sizes = _medians(done, lambda job: _bytes(job, root))
    of_raw = expected_of_sizes(every, root, datasets or {})

    def hours(job: Job) -> float | None:
        if (one := seconds.get(job.kind)) is not None:
            return one * epochs(job) / 3600
        by_size = of_raw.get(tuple(job.output))
        return None if by_size is None else by_size.seconds / 3600

    def written(job: Job) -> float | None:
        by_size = of_raw.get(tuple(job.output))
        return sizes.get(job.kind, None if by_size is None else by_size.written)

    grouped: dict[tuple[str, str, str], list[Job]] = defaultdict(list)
    for job in every:
        grouped[job.stage, job.rule, job.wildcards.get("layout", "")].append(job)
    order = list(dict.fromkeys(stage for stage, _, _ in grouped))
    rows = []
    for key in sorted(grouped, key=lambda one: order.index(one[0])):
        jobs = grouped[key]
        these = [job for job in jobs if is_left(job)]
        asked = [job.walltime for job in these]
        expected = [hours(job) for job in these]
        disk = [written(job) for job in these]
        by_size = [one for job in these if (one := of_raw.get(tuple(job.output))) is not None]
        requested = jobs[0].walltime is not None
        rows.append(
            Row(
                *key,
                jobs=len(jobs),
                left=len(these),
                hours_asked=_sum(asked),
                hours_expected=_sum(expected),
                memory_gb=max(job.memory_mb for job in jobs) / MB_PER_GB if requested else None,
                gpus=max(job.gpus for job in jobs),
                gpu_hours_asked=_sum(_weighted(asked, these)),
                gpu_hours_expected=_sum(_weighted(expected, these)),
                disk_gb=None if (total := _sum(disk)) is None else total / _GB,
                memory_expected_gb=max((one.memory / _GB for one in by_size), default=None),
                by_size=any(
                    job.kind not in seconds for job in these if tuple(job.output) in of_raw
                ),
                request=jobs[0].request if requested else {},
                threads=jobs[0].threads,
            )
        )
    return rows


def _spans(jobs: Iterable[Job]) -> dict[str, tuple[int, int]]:
    """First and last epoch of trainings by their first output: each goes on from the one before."""
    runs: dict[tuple[str, ...], list[tuple[int, str]]] = defaultdict(list)
    for job in jobs:
        if "epoch" in job.wildcards:
            run = (*job.kind, job.wildcards.get("seed", ""))
            runs[run].append((int(job.wildcards["epoch"]), job.output[0]))
    return {
        output: (before, epoch)
        for run in runs.values()
        for (before, _), (epoch, output) in pairwise([(0, ""), *sorted(run)])
    }


def _medians(jobs: Iterable[Job], of: Callable[[Job], float | None]) -> dict[Any, float]:
    found: dict[Any, list[float]] = defaultdict(list)
    for job in jobs:
        if (value := of(job)) is not None:
            found[job.kind].append(value)
    return {kind: statistics.median(values) for kind, values in found.items()}


def _seconds(job: Job, begin: int, end: int, root: Path) -> float | None:
    """Time that a finished job took: by the receipt of a training, which knows all of its sessions."""
    for name in job.output:
        if "epoch" in job.wildcards and name.endswith(".json"):
            try:
                receipt = read_receipt(root / name, ("sessions", "history"))
                if job.gpus and receipt["sessions"][-1]["device"] == "CPU":
                    return None  # says nothing about the GPUs of the plan
                history = receipt["history"]
                return sum(one["seconds"] for one in history if begin < one["epoch"] <= end)
            except (DataError, LookupError, TypeError):
                return None
    try:
        with (root / str(job.benchmark)).open() as file:
            return float(next(csv.DictReader(file, delimiter="\t"))["s"])
    except (OSError, ValueError, LookupError, StopIteration):
        return None


def _bytes(job: Job, root: Path) -> float | None:
    """Size of what a finished job made."""
    paths = [root / name for name in job.output]
    if not all(path.exists() for path in paths):
        return None
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return float(sum(file.stat().st_size for file in files if file.is_file()))


def _each(total: float | None, parts: int) -> float | None:
    return None if total is None else total / max(1, parts)


def _weighted(hours: Sequence[float | None], jobs: Sequence[Job]) -> list[float | None]:
    return [None if h is None else h * job.gpus for h, job in zip(hours, jobs, strict=True)]


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
