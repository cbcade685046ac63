"""What jobs on raw files took, beside what `millrace plan` says of them before anything runs."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from millrace.planning.raw_sizes import Expected, costs, expected_of_size
from millrace.provenance import raw_bytes

_MB = 2**20


@dataclass(frozen=True)
class Taken:
    """Jobs of one kind on one dataset. CPU seconds are their sum, memory is that of the largest job."""

    dataset: str
    job: str
    """As `millrace.systems.base.System.costs` names it."""
    jobs: int
    raw_gb: float
    """Raw files of the dataset (1e9 bytes)."""
    seconds: float
    seconds_expected: float
    memory_gb: float
    """1024^3 bytes, as all memory."""
    memory_expected_gb: float


def taken(sources: Mapping[str, tuple[Path, int]], benchmarks: Path) -> list[Taken]:
    """Compare the last runs of jobs on raw files with what their sizes say.

    ``sources`` are the folders of the raw files by dataset, and in how many parts each is read;
    ``benchmarks`` is the folder in which Snakemake keeps what jobs took. Datasets whose raw files are not
    there, and jobs that did not run, are left out.
    """
    found = []
    for dataset, (source, parts) in sources.items():
        jobs = {
            name: read
            for name, cost in costs().items()
            if cost.of_part in (None, parts > 1)
            if (read := [*_read(benchmarks, name, dataset, parts, cost.of_part)])
        }
        if not jobs or not source.is_dir():
            continue
        size = raw_bytes(source)
        for name, read in jobs.items():
            one: Expected = expected_of_size(costs()[name], size / len(read))
            found.append(
                Taken(
                    dataset,
                    name,
                    len(read),
                    raw_gb=size / 1e9,
                    seconds=sum(seconds for seconds, _ in read),
                    seconds_expected=one.seconds * len(read),
                    memory_gb=max(memory for _, memory in read) / 2**30,
                    memory_expected_gb=one.memory / 2**30,
                )
            )
    return found


def _read(
    benchmarks: Path, name: str, dataset: str, parts: int, of_part: bool | None
) -> Iterator[tuple[float, float]]:
    """CPU seconds and bytes of memory of the jobs of a dataset, as far as they ran."""
    kind = name.removeprefix("extract_")
    if of_part:
        stems = [f"{name}/{dataset}/{number}" for number in range(parts)]
    elif of_part is None and parts > 1:
        numbered = [f"extract_part/{dataset}/{kind}_{number}" for number in range(parts)]
        stems = [f"{name}/{dataset}", *numbered]
    else:
        stems = [f"{name}/{dataset}", f"extract_samples/{dataset}/{kind}"]
    for stem in stems:
        try:
            with (benchmarks / f"{stem}.tsv").open() as file:
                row = next(csv.DictReader(file, delimiter="\t"))
            yield float(row["cpu_time"]), float(row["max_rss"]) * _MB
        except (OSError, ValueError, LookupError, TypeError, StopIteration):
            continue
