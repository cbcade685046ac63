"""Checking, thinning and copying of stores. What deletes takes the lock of the store first."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.errors import DataError
from millrace.files import atomic_write, refusal_of, sync
from millrace.runs.inventory import Run, Step, usage
from millrace.training import run_hash
from millrace.training.owner import LockedError
from millrace.training.store import Manifest, checksum
from millrace.training.usage import SESSIONS, TARGET


@dataclass(frozen=True)
class Finding:
    """Something that `verify` looked at."""

    path: Path
    problem: str | None
    """None: intact."""


@dataclass(frozen=True)
class Removal:
    """Something that `clean` would remove."""

    run: Run
    path: Path
    reason: str

    @property
    def freed(self) -> int:
        """Bytes that become free."""
        return usage([self.path])[1]


def verify(runs: Iterable[Run]) -> Iterator[Finding]:
    """Compare the checksum of every step with its manifest, and each run hash with its name."""
    for run in runs:
        yield Finding(run.path / "identity.json", _identity_problem(run))
        for step in run.steps:
            problem = step.problem()
            # A run that goes on removes old steps while they are being read.
            if problem is None or step.path.exists():
                yield Finding(step.path, problem)


def verify_outputs(results: Path) -> Iterator[Finding]:
    """Compare the checkpoints that were published below ``results/train`` with their receipts."""
    for path, receipt in receipts(results):
        if isinstance(receipt, str):
            yield Finding(path, receipt)
            continue
        expected = receipt["checkpoint"]
        file = path.with_name(expected["file"])
        if not file.is_file():
            yield Finding(file, "it is missing; the workflow restores it from the store")
        elif file.stat().st_size != expected["size"] or checksum(file) != expected["crc32"]:
            yield Finding(file, "its size or checksum is not the one of its receipt")
        else:
            yield Finding(file, None)


def receipts(results: Path) -> Iterator[tuple[Path, dict[str, Any] | str]]:
    """Receipts of published checkpoints; a text says what is wrong with one."""
    for path in sorted((results / "train").glob("*/*/seed*/epoch_*.json")):
        try:
            receipt = json.loads(path.read_text())
            complete = {"file", "size", "crc32"} <= receipt["checkpoint"].keys()
            yield path, receipt if complete and receipt["identity"] else "it is not a receipt"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            yield path, "it is not a readable receipt"


def plan_cleaning(
    runs: Sequence[Run], keep: int, results: Path | None = None, everything: Sequence[Run] = ()
) -> list[Removal]:
    """List what can go: old steps, what kills left behind, and old run hashes.

    Parameters
    ----------
    runs : sequence of Run
        The runs to clean.
    keep : int
        Steps to keep besides the milestones, at least 1. Only those whose checksum agrees count, and
        damaged ones are left alone: they may be milestones.
    results : Path, optional
        Also list the stores of old run hashes: those to which no receipt below this directory refers,
        and that are not the newest of their experiment, layout and seed.
    everything : sequence of Run
        All runs, to tell which run hash is the newest; by default ``runs``.

    Raises
    ------
    DataError
        ``keep`` is below 1, or a receipt cannot be read, so that it is unknown what it refers to.
    """
    if keep < 1:
        raise DataError(f"--keep {keep}: expected 1 or more, else a run could not be continued")
    old = _old_identities(runs, results, everything or runs) if results is not None else []
    removals = [Removal(run, run.path, "old run hash, no receipt refers to it") for run in old]
    for run in runs:
        if run in old:
            continue
        removals += [Removal(run, path, "left behind by a kill") for path in run.leftovers]
        removals += [Removal(run, s.path, "old step") for s in _dispensable(run.steps, keep)]
    return removals


def clean(removals: Iterable[Removal]) -> None:
    """Remove what `plan_cleaning` listed.

    Raises
    ------
    LockedError
        A run is being trained; nothing of it was removed.
    """
    by_run: dict[Run, list[Path]] = {}
    for removal in removals:
        by_run.setdefault(removal.run, []).append(removal.path)
    for run, paths in by_run.items():
        with run.store().writing():  # which removes what kills left behind
            # Step by step also where all goes: what a kill leaves of a store is a sound store.
            for path in [step.path for step in run.steps] if run.path in paths else paths:
                _remove(path)
            if run.path in paths:
                shutil.rmtree(run.path)


def refuse_if_held(runs: Iterable[Run]) -> None:
    """Raise `LockedError` if somebody writes to one of the runs."""
    for run in runs:
        if holder := run.holder:
            raise LockedError(f"{run.name}: in use by {holder}; wait for it or stop it")


def backup(run: Run, destination: Path) -> Iterator[tuple[Step, str]]:
    """Copy the committed steps of a run and what describes them, one step after the other.

    Each copy is read again and compared with its manifest before it gets its name, so that a backup
    that was stopped can be run again: what is there and intact is not copied twice.

    Parameters
    ----------
    run : Run
        It may be in training.
    destination : Path
        Root of the backup, laid out like the root of the runs: it can be listed, verified, and
        copied back in the same way.

    Yields
    ------
    Step, str
        Each step, and what became of it: ``copied``, ``there``, ``damaged: ...`` or ``gone``.

    Raises
    ------
    LockedError
        The destination belongs to a run in training.
    OutputError
        No space, no permission.
    """
    copy = Run(destination.joinpath(*run.parts), *run.parts)
    # Its own lock: two backups, or a backup and a training, must not meet in a directory.
    with copy.store().writing(), refusal_of(copy.path):
        for step in run.steps:
            yield step, _copy_step(step, copy.path / step.path.name)
        _copy_file(run.path / "identity.json", copy.path / "identity.json")
        if len(run.history) >= len(copy.history):
            for name in ("metrics.jsonl", SESSIONS, TARGET):
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
    if problem is not None:
        shutil.rmtree(partial, ignore_errors=True)
        return f"damaged: {problem}" if step.path.exists() else "gone"
    shutil.rmtree(target, ignore_errors=True)  # damaged, else it would have stayed
    partial.rename(target)
    sync(target.parent)
    return "copied"


def _copy_file(source: Path, target: Path) -> None:
    if source.is_file():
        with atomic_write(target) as partial:
            shutil.copy2(source, partial)


def _identity_problem(run: Run) -> str | None:
    try:
        described = json.loads((run.path / "identity.json").read_text())
        agrees = run_hash.digest(described) == run.run_hash
    except (OSError, ValueError, TypeError):
        return "it is missing or not readable"
    return None if agrees else "its digest is not the name of its directory"


def _dispensable(steps: Sequence[Step], keep: int) -> list[Step]:
    """Steps older than the ``keep`` newest intact ones, without milestones and damaged ones."""
    passing = [step for step in reversed(steps) if step.manifest and not step.milestone]
    intact = 0
    for position, step in enumerate(passing):
        intact += step.problem() is None
        if intact == keep:
            older = passing[position + 1 :]
            return [step for step in reversed(older) if step.problem(thorough=False) is None]
    return []


def _old_identities(runs: Sequence[Run], results: Path, everything: Sequence[Run]) -> list[Run]:
    referred = set()
    if not (results / "train").is_dir():
        raise DataError(
            f"{results / 'train'}: no such directory, so no receipt says which runs are in use; name the "
            "directory of the results by --results"
        )
    for path, receipt in receipts(results):
        if isinstance(receipt, str):
            raise DataError(f"{path}: {receipt}; mend or delete it, it says which run is in use")
        referred.add((*path.parts[-4:-1], receipt["identity"]))
    newest: dict[tuple[str, ...], Run] = {}
    for run in everything:
        family = run.parts[:3]
        if family not in newest or run.changed > newest[family].changed:
            newest[family] = run
    return [
        run for run in runs if run.parts not in referred and run != newest.get(run.parts[:3], run)
    ]


def _remove(path: Path) -> None:
    if not path.exists():
        return
    away = path.with_name(f"tmp_{path.name}")
    os.rename(path, away)  # noqa: PTH104
    if away.is_dir():
        shutil.rmtree(away)
    else:
        away.unlink()
