"""Verification, cleaning and backup of stores. Deletion takes the lock of the store first."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.errors import DataError
from millrace.evaluation.training_record import read_scores
from millrace.files import atomic_write, output_errors, sync
from millrace.runs.inventory import METRICS, Run, Step, disk_usage, newest_of_family
from millrace.sealed import checksum
from millrace.training.owner import LockedError
from millrace.training.receipt import read_receipt
from millrace.training.store import Manifest, discard
from millrace.training.usage import SESSIONS, TARGET

_INTACT = "the steps copied before are intact: make room and run the same command again"


@dataclass(frozen=True)
class Finding:
    """A file or directory that was verified."""

    path: Path
    problem: str | None
    """None: intact."""


@dataclass(frozen=True)
class Removal:
    """A file or directory that `clean` would remove."""

    run: Run
    path: Path
    reason: str

    @property
    def freed(self) -> int:
        """Bytes that the removal frees."""
        return disk_usage([self.path])[1]


def verify(runs: Iterable[Run]) -> Iterator[Finding]:
    """Compare the checksum of every step with its manifest, and look at the records of each run."""
    for run in runs:
        yield from (Finding(path, problem) for path, problem in run.records.items())
        for step in run.steps:
            problem = step.problem()
            # A run in training may remove an old step while it is being read.
            if problem is None or step.path.exists():
                yield Finding(step.path, problem)


def verify_outputs(results: Path) -> Iterator[Finding]:
    """Compare the published checkpoints below ``results/train`` with their receipts, and look at scores."""
    for path, receipt in receipts(results):
        if isinstance(receipt, str):
            yield Finding(path, receipt)
            continue
        expected = receipt["checkpoint"]
        file, problem = path.with_suffix(".ckpt"), None
        if not file.is_file():
            problem = "it is missing; the workflow restores it from the store"
        elif file.name != expected["file"]:
            problem = f"its receipt is that of {expected['file']}"
        elif file.stat().st_size != expected["size"] or checksum(file) != expected["crc32"]:
            problem = "its size or checksum is not the one of its receipt"
        yield Finding(file, problem)
    for path in sorted((results / "train").glob("*/*/seed*/epoch_*.ckpt")):
        if not path.with_suffix(".json").exists():
            yield Finding(path, "its receipt is missing; the workflow makes both again")
    for path in sorted((results / "evaluate").glob("*/*/*/metrics.json")):
        try:
            read_scores(path)
            yield Finding(path, None)
        except DataError as error:
            yield Finding(path, str(error).removeprefix(f"{path}: "))


def receipts(results: Path) -> Iterator[tuple[Path, dict[str, Any] | str]]:
    """Iterate over the receipts of published checkpoints; a string says what is wrong with one."""
    for path in sorted((results / "train").glob("*/*/seed*/epoch_*.json")):
        try:
            yield path, read_receipt(path)
        except DataError as error:
            yield path, str(error).removeprefix(f"{path}: ")


def plan_cleaning(
    runs: Sequence[Run], keep: int, results: Path | None = None, everything: Sequence[Run] = ()
) -> list[Removal]:
    """Return what can be removed: old steps, files left behind by killed processes, and old run hashes.

    Besides the milestones, ``keep`` steps are kept, at least 1. Only steps with the right checksum count.
    Damaged steps are not removed, because they may be milestones.

    With a directory of ``results``, stores of old run hashes can be removed as well: those to which no
    receipt below it refers, and that are not the newest of their experiment, layout and seed among
    ``everything``, all runs (by default ``runs``).

    Raises `DataError` if ``keep`` is below 1, or if a receipt cannot be read, so that it is not known which
    run it refers to.
    """
    if keep < 1:
        raise DataError(f"--keep {keep}: expected 1 or more, else a run could not be continued")
    old = _old_run_hashes(runs, results, everything or runs) if results is not None else []
    removals = [Removal(run, run.path, "old run hash, no receipt refers to it") for run in old]
    for run in runs:
        if run in old:
            continue
        removals += [Removal(run, path, "left behind by a kill") for path in run.leftovers]
        removals += [Removal(run, s.path, "old step") for s in _dispensable(run.steps, keep)]
    return removals


def clean(removals: Iterable[Removal]) -> None:
    """Remove what `plan_cleaning` listed.

    Raises `LockedError` if a run is in training; nothing of it was removed.
    """
    by_run: dict[Run, list[Path]] = {}
    for removal in removals:
        by_run.setdefault(removal.run, []).append(removal.path)
    for run, paths in by_run.items():
        with run.store().writing():  # which also removes files left behind by killed processes
            # Step by step, also if all is removed: if this is killed, the rest is an intact store.
            for path in [step.path for step in run.steps] if run.path in paths else paths:
                if path.exists():
                    discard(path)
            if run.path in paths:
                shutil.rmtree(run.path)


def refuse_if_held(runs: Iterable[Run]) -> None:
    """Raise `LockedError` if a process writes to one of the runs."""
    for run in runs:
        if holder := run.holder:
            raise LockedError(f"{run.name}: in use by {holder}; wait for it or stop it")


def backup(run: Run, destination: Path) -> Iterator[tuple[Step, str]]:
    """Copy the committed steps of a run, which may be in training, and its records, step after step.

    Each copy is read again and compared with its manifest before it gets its final name. A backup that was
    interrupted can be repeated: intact copies are not copied again. The destination has the same structure
    as the root of the runs: it can be listed, verified and copied back in the same way.

    Yields each step and its outcome: ``copied``, ``there``, ``damaged: ...`` or ``gone``. Raises
    `LockedError` if a process writes to the destination, and `OutputError` if there is no space or no
    permission.
    """
    copy = Run(destination.joinpath(*run.parts), *run.parts)
    # The copy has its own lock: two backups, or a backup and a training, must not write to one directory.
    with copy.store().writing(), output_errors(copy.path, _INTACT):
        for step in run.steps:
            yield step, _copy_step(step, copy.path / step.path.name)
        _copy_file(run.path / "identity.json", copy.path / "identity.json")
        if len(run.history) >= len(copy.history):
            for name in (METRICS, SESSIONS, TARGET):
                _copy_file(run.path / name, copy.path / name)


def _copy_step(step: Step, target: Path) -> str:
    there = Step(target, Manifest.read(target), step.run_hash)
    if there.manifest is not None and there.problem() is None:
        if step.milestone and not there.milestone:
            _copy_file(step.path / "manifest.json", target / "manifest.json")
        return "there"
    problem, manifest = step.problem(thorough=False), step.manifest
    partial = target.with_name(f"tmp_{target.name}")
    try:
        if problem is None and manifest is not None:
            partial.mkdir()
            for name in (*manifest.files, "manifest.json"):
                (partial / name).parent.mkdir(exist_ok=True)
                shutil.copy2(step.path / name, partial / name)
                sync(partial / name)
            problem = Step(partial, Manifest.read(partial), step.run_hash).problem()
    except FileNotFoundError:
        problem = "its files vanished"
    except OSError:  # such as a full disk
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if problem is not None:
        shutil.rmtree(partial, ignore_errors=True)
        return f"damaged: {problem}" if step.path.exists() else "gone"
    shutil.rmtree(target, ignore_errors=True)  # damaged, otherwise it would have been kept
    partial.rename(target)
    sync(target.parent)
    return "copied"


def _copy_file(source: Path, target: Path) -> None:
    if source.is_file():
        with atomic_write(target) as partial:
            shutil.copy2(source, partial)


def _dispensable(steps: Sequence[Step], keep: int) -> list[Step]:
    """Steps older than the ``keep`` newest intact ones, without milestones and damaged ones.

    The last end of an epoch is none, either: training may be rolled back to it.
    """
    temporary = [step for step in reversed(steps) if step.manifest and not step.milestone]
    ends = [step for step in reversed(steps) if step.manifest and not step.manifest.batch]
    intact = 0
    for position, step in enumerate(temporary):
        intact += step.problem() is None
        if intact == keep:
            older = temporary[position + 1 :]
            return [
                step
                for step in reversed(older)
                if step.problem(thorough=False) is None and step not in ends[:1]
            ]
    return []


def _old_run_hashes(runs: Sequence[Run], results: Path, everything: Sequence[Run]) -> list[Run]:
    """Runs that no receipt refers to and that are not the newest of their family."""
    if not (results / "train").is_dir():
        raise DataError(
            f"{results / 'train'}: no such directory, so no receipt says which runs are in use; name the "
            "directory of the results by --results"
        )
    referred = set()
    for path, receipt in receipts(results):
        if isinstance(receipt, str):
            raise DataError(f"{path}: {receipt}; repair or delete it, it refers to a run in use")
        referred.add((*path.parts[-4:-1], receipt["identity"]))
    newest = newest_of_family(everything).values()
    return [run for run in runs if run.parts not in referred and run not in newest]
