"""The stores below a directory such as ``runs/``: what each holds, and how far it has come.

Nothing here writes. Steps and their checksums are read by `millrace.training.store`.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from millrace.errors import DataError
from millrace.training import owner
from millrace.training.store import CheckpointStore, Manifest, checksum

_LEFTOVERS = ("tmp_*", ".*.partial", ".owner.json.[0-9a-f]*")


@dataclass(frozen=True)
class Step:
    """One directory ``step_*`` of a store, committed or damaged."""

    path: Path
    manifest: Manifest | None
    """None: missing or damaged."""
    run_hash: str
    """Of the run that the step should belong to."""

    @property
    def milestone(self) -> bool:
        """Whether it is kept for good."""
        return self.manifest is not None and self.manifest.milestone

    def problem(self, thorough: bool = True) -> str | None:
        """Say what is wrong with the step; None: it is intact.

        Parameters
        ----------
        thorough : bool
            Read the data and compare its checksum, not only its size.
        """
        manifest = self.manifest
        if manifest is None:
            return "its manifest is missing or damaged"
        if manifest.run_hash != self.run_hash:
            return f"it belongs to the run {manifest.run_hash}"
        for name, (expected, crc) in manifest.files.items():
            file = self.path / name
            try:
                size = file.stat().st_size
                if size != expected:
                    return f"{name} has {size} bytes, expected {expected}"
                if thorough and checksum(file) != crc:
                    return f"the checksum of {name} is not the one of its manifest"
            except OSError as error:
                return f"{name} cannot be read ({error.strerror})"
        return None


@dataclass(frozen=True)
class Run:
    """The store of one run, ``<root>/<experiment>/<layout>/seed<n>/<run hash>``."""

    path: Path
    experiment: str
    layout: str
    seed: str
    """``seed<n>``, as in the path."""
    run_hash: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Experiment, layout, seed and run hash."""
        return self.experiment, self.layout, self.seed, self.run_hash

    @property
    def name(self) -> str:
        """What commands take: the parts joined by slashes."""
        return "/".join(self.parts)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """All steps, the oldest first."""
        return tuple(
            Step(path, Manifest.read(path), self.run_hash)
            for path in sorted(self.path.glob("step_*"))
            if path.is_dir()
        )

    @cached_property
    def newest(self) -> Manifest | None:
        """Manifest of the newest committed step; its data is not checked."""
        sound = [step.manifest for step in self.steps if step.problem(thorough=False) is None]
        return sound[-1] if sound else None

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Records of the epochs in ``metrics.jsonl``, without a line that is just being written."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        return list(_records(lines))

    @property
    def holder(self) -> str | None:
        """Who writes to the store at this moment."""
        lock = self.path / "owner.json"
        record = owner.read_owner(lock)
        return str(record) if record and record.is_alive(lock, time.time()) else None

    @property
    def state(self) -> str:
        """``training``, ``damaged``, ``empty`` or ``idle``; data is not read for this."""
        if self.holder:
            return "training"
        if any(step.problem(thorough=False) for step in self.steps):
            return "damaged"
        return "idle" if self.steps else "empty"

    @property
    def changed(self) -> float:
        """Time of the last change, in seconds since the epoch."""
        files = [step.path / "manifest.json" for step in self.steps]
        files += [self.path / name for name in ("metrics.jsonl", "identity.json")]
        return max((path.stat().st_mtime for path in files if path.is_file()), default=0.0)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return usage([self.path])[0]

    @property
    def leftovers(self) -> list[Path]:
        """What a kill left behind."""
        return sorted(path for pattern in _LEFTOVERS for path in self.path.glob(pattern))

    def store(self) -> CheckpointStore:
        """Open the store, to write or to find its newest intact step."""
        return CheckpointStore(self.path, self.run_hash, "")


def find_runs(root: Path) -> list[Run]:
    """List the runs below a directory, by name.

    Raises
    ------
    DataError
        There is no such directory.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; name the one with the stores by --root")
    found = (_run(path) for path in sorted(root.glob("*/*/seed*/*")) if path.is_dir())
    return [run for run in found if _is_store(run.path)]


def select(runs: Sequence[Run], names: Iterable[str]) -> list[Run]:
    """Choose runs by path or by the beginning of ``experiment/layout/seed<n>/<run hash>``.

    Parameters
    ----------
    runs : sequence of Run
    names : iterable of str
        The last part of a name may be shortened. No names: all runs.

    Raises
    ------
    DataError
        A name fits no run.
    """
    names = list(names)
    chosen = {run.path: run for name in names for run in _matching(runs, name)}
    return list(chosen.values()) if names else list(runs)


def one(runs: Sequence[Run], name: str) -> Run:
    """Choose the run of a name, the one changed last among several run hashes.

    Raises
    ------
    DataError
        The name fits no run, or runs of several experiments, layouts or seeds.
    """
    matching = _matching(runs, name)
    families = sorted({"/".join(run.parts[:3]) for run in matching})
    if len(families) > 1:
        raise DataError(f"{name}: fits {', '.join(families)}; name one of them")
    return max(matching, key=lambda run: run.changed)


def usage(paths: Iterable[Path]) -> tuple[int, int]:
    """Count the bytes below paths, and how many of them their removal would free.

    Steps that are outputs of the workflow have two names: removing one frees nothing.
    """
    total = freed = 0
    for path in paths:
        for file in [path, *path.rglob("*")]:
            try:
                status = file.lstat()
            except FileNotFoundError:  # the run goes on
                continue
            if not file.is_dir():
                total += status.st_size
                freed += status.st_size if status.st_nlink == 1 else 0
    return total, freed


def session_statistics(
    sessions: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]], step: int
) -> list[dict[str, Any]]:
    """What came of each session of a run.

    Parameters
    ----------
    sessions, history : sequence of mapping
        As in a checkpoint or a receipt.
    step : int
        Optimiser steps done when they were saved.

    Returns
    -------
    list of dict
        The sessions, each with ``steps`` (that were kept: what a kill took back was done again by the
        next), ``epochs`` and ``seconds`` (of the epochs that it finished), ``samples_per_second``
        (mean over these, None without) and ``validation_loss`` (of the last of them).
    """
    ends = [session["step"] for session in sessions[1:]] + [step]
    result = []
    for session, end in zip(sessions, ends, strict=True):
        epochs = [record for record in history if record["session"] == session["session"]]
        seconds = sum(record["seconds"] for record in epochs)
        samples = sum(record["samples_per_second"] * record["seconds"] for record in epochs)
        result.append(
            {
                **session,
                "steps": end - session["step"],
                "epochs": len(epochs),
                "seconds": seconds,
                "samples_per_second": samples / seconds if seconds else None,
                "validation_loss": epochs[-1]["validation_loss"] if epochs else None,
            }
        )
    return result


def _run(path: Path) -> Run:
    return Run(path, path.parts[-4], path.parts[-3], path.parts[-2], path.name)


def _is_store(path: Path) -> bool:
    return (path / "identity.json").is_file() or any(path.glob("step_*"))


def _matching(runs: Sequence[Run], name: str) -> list[Run]:
    path = os.path.abspath(name)  # noqa: PTH100  not `resolve`: links stay as they are named
    below = [run for run in runs if (os.path.abspath(run.path) + os.sep).startswith(path + os.sep)]  # noqa: PTH100
    if below:
        return below
    parts = tuple(part for part in name.split("/") if part)
    exact = [run for run in runs if parts and run.parts[: len(parts)] == parts]
    begun = [
        run
        for run in runs
        if parts
        and len(parts) <= len(run.parts)
        and run.parts[: len(parts) - 1] == parts[:-1]
        and run.parts[len(parts) - 1].startswith(parts[-1])
    ]
    if not (exact or begun):
        known = sorted({"/".join(run.parts[:3]) for run in runs})
        raise DataError(f"{name}: no such run; there are {', '.join(known) or 'none'}")
    return exact or begun


def _records(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            return
        if isinstance(record, dict) and "epoch" in record:
            yield record
