"""What jobs on raw files took, beside what `millrace plan` says of them before anything runs."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from millrace.errors import DataError
from millrace.planning.raw_sizes import costs, expected_of_size
from millrace.provenance import raw_bytes
from millrace.systems.base import Block

_MB = 2**20


@dataclass(frozen=True)
class Taken:
    """Jobs of one kind on one dataset.

    CPU seconds, measured or expected, are the sum of those that are known, memory is that of the largest.
    """

    dataset: str
    job: str
    """As `millrace.systems.base.System.costs` names it."""
    known: int
    """Jobs of which something is known."""
    jobs: int
    raw_gb: float
    """Raw files of the dataset (1e9 bytes)."""
    seconds: float
    seconds_expected: float
    memory_gb: float
    """1024^3 bytes, as all memory."""
    memory_expected_gb: float


def taken(
    sources: Mapping[str, tuple[Path, Sequence[int]]],
    benchmarks: Path,
    datasets: Mapping[str, Block] | None = None,
) -> list[Taken]:
    """Compare the last runs of jobs on raw files with what their sizes say.

    ``sources`` are the folders of the raw files by dataset, and the numbers of the parts in which each is
    read; ``benchmarks`` is the folder in which Snakemake keeps what jobs took, ``datasets`` the section of
    the configuration. Datasets whose raw files are not there, and jobs that did not run, are left out.
    """
    found = []
    for dataset, (source, parts) in sources.items():
        try:
            size = raw_bytes(source)
        except (OSError, DataError):
            continue
        for name, cost in costs().items():
            read, jobs = _read(benchmarks, name, dataset, parts, cost.of_part)
            if not read or cost.of_part not in (None, len(parts) > 1):
                continue
            one = expected_of_size(cost.of((datasets or {}).get(dataset, {})), size / jobs)
            found.append(
                Taken(
                    dataset,
                    name,
                    len(read),
                    jobs,
                    raw_gb=size / 1e9,
                    seconds=sum(seconds for seconds, _ in read),
                    seconds_expected=one.seconds * len(read),
                    memory_gb=max(memory for _, memory in read) / 2**30,
                    memory_expected_gb=one.memory / 2**30,
                )
            )
    return found


def _read(
    benchmarks: Path, name: str, dataset: str, parts: Sequence[int], of_part: bool | None
) -> tuple[list[tuple[float, float]], int]:
    """CPU seconds and bytes of memory of jobs on a dataset, as far as they are known, and how many ran."""
    kind = name.removeprefix("extract_")
    numbered = [f"{name}/{dataset}/{number}" for number in parts]
    if not of_part:
        numbered = [f"extract_part/{dataset}/{kind}_{number}" for number in parts]
    whole = [f"{name}/{dataset}", f"extract_samples/{dataset}/{kind}"]
    if of_part or (
        len(parts) > 1 and any((benchmarks / f"{one}.tsv").is_file() for one in numbered)
    ):
        return [row for stem in numbered if (row := _row(benchmarks / f"{stem}.tsv"))], len(parts)
    return [row for stem in whole if (row := _row(benchmarks / f"{stem}.tsv"))], 1


def _row(path: Path) -> tuple[float, float] | None:
    try:
        with path.open() as file:
            row = next(csv.DictReader(file, delimiter="\t"))
        return float(row["cpu_time"]), float(row["max_rss"]) * _MB
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return None  # of jobs that end at once Snakemake knows nothing
