"""What jobs on raw files will take, by the sizes of these, before any job of their kind has finished."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from millrace.planning.dry_run import Job
from millrace.provenance import raw_bytes
from millrace.systems.base import Block, Cost
from millrace.systems.registry import systems

_START = 2.0
"""CPU seconds that the start of a job takes, whatever it reads."""


@dataclass(frozen=True)
class Expected:
    """What a job will take; modelled."""

    seconds: float
    """CPU time on one core."""
    written: float
    """Bytes."""
    memory: float
    """Bytes."""


def expected_of_sizes(
    jobs: Sequence[Job], root: Path, datasets: Mapping[str, Block]
) -> dict[tuple[str, ...], Expected]:
    """What the jobs on raw files will take, by their outputs, as far as the raw files are there.

    ``jobs`` are all of the workflow, whose paths start from ``root``, and ``datasets`` its section of that
    name, as far as it is known. Jobs of one rule on one dataset share its raw files.
    """
    known, sizes = costs(), _raw_sizes(jobs, root)
    mine = [
        (job, cost)
        for job in jobs
        if (cost := known.get(_name(job))) and job.wildcards.get("dataset") in sizes
    ]
    shared = Counter((job.rule, job.wildcards["dataset"]) for job, _ in mine)
    found = {}
    for job, cost in mine:
        dataset = job.wildcards["dataset"]
        size = sizes[dataset] / shared[job.rule, dataset]
        found[tuple(job.output)] = expected_of_size(cost.of(datasets.get(dataset, {})), size)
    return found


def costs() -> dict[str, Cost]:
    """What jobs on raw files take, of all systems."""
    return {name: cost for system in systems().values() for name, cost in system.costs.items()}


def expected_of_size(cost: Cost, size: float) -> Expected:
    """What a job on so many bytes of raw files will take."""
    memory = cost.memory_gb * 2**30 + cost.held * size
    return Expected(_START + cost.seconds * size / 1e9, cost.written * size, memory)


def _name(job: Job) -> str:
    """Name by which a system says what a job costs, see `System.costs`."""
    if job.rule in ("extract_samples", "extract_part"):
        return f"extract_{job.wildcards['kind']}"
    return job.rule


def _raw_sizes(jobs: Sequence[Job], root: Path) -> Mapping[str, int]:
    """Bytes of the raw files of each dataset: directories that jobs read and none but a simulator makes."""
    made = {name for job in jobs if job.rule != "simulate_raw" for name in job.output}
    sources = {
        job.wildcards["dataset"]: root / name
        for job in jobs
        if "dataset" in job.wildcards
        for name in job.input
        if name not in made and (root / name).is_dir()
    }
    return {dataset: raw_bytes(source) for dataset, source in sources.items()}
