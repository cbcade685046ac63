"""Inventory of the stores below a directory such as ``runs/``: their steps, records and state.

Nothing here writes. Manifests and checksums are read by `millrace.training.store`.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from millrace.errors import DataError, listed
from millrace.sealed import damaged_lines, read_lines
from millrace.training import owner, run_hash
from millrace.training.store import CheckpointStore, Manifest
from millrace.training.usage import SESSIONS, TARGET, check_target, read_sessions, read_target

METRICS = "metrics.jsonl"
_LEFTOVERS = ("tmp_*", ".*.partial", ".owner.json.[0-9a-f]*")


@dataclass(frozen=True)
class Step:
    """One directory ``step_*`` of a store, committed or damaged."""

    path: Path
    manifest: Manifest | None
    """None: missing or damaged."""
    run_hash: str
    """Hash of the run that the step should belong to."""

    @property
    def milestone(self) -> bool:
        """Whether the step is kept permanently."""
        return self.manifest is not None and self.manifest.milestone

    def problem(self, thorough: bool = True) -> str | None:
        """Return what is wrong with the step; None: it is intact.

        If ``thorough``, the data are read and their checksums compared, not only their sizes.
        """
        manifest = self.manifest
        if manifest is None:
            return "its manifest is missing or damaged"
        if manifest.run_hash != self.run_hash:
            return f"it belongs to the run {manifest.run_hash}"
        return manifest.problem(self.path, thorough)


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
        """Name of the run in commands: the parts joined by slashes."""
        return "/".join(self.parts)

    @property
    def family(self) -> str:
        """Name without the run hash: runs of one family differ in their configuration."""
        return "/".join(self.parts[:3])

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """All steps, the oldest first."""
        return tuple(
            Step(path, Manifest.read(path), self.run_hash)
            for path in sorted(self.path.glob("step_*"))
        )

    @cached_property
    def newest(self) -> Manifest | None:
        """Manifest of the newest committed step; its data is not checked."""
        return self.sound[-1] if self.sound else None

    @cached_property
    def sound(self) -> list[Manifest]:
        """Manifests of the committed steps, by number; their data is not checked."""
        return [
            step.manifest
            for step in self.steps
            if step.manifest and step.problem(thorough=False) is None
        ]

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Records of the epochs in ``metrics.jsonl``, without lines cut short or damaged."""
        return [one for one in read_lines(self.path / METRICS) if "epoch" in one]

    @cached_property
    def records(self) -> dict[Path, str | None]:
        """The files beside the steps, and what is wrong with each; None: nothing.

        Training needs none of them; they tell how it went.
        """
        found = {} if self.holder else self._missing_records()
        checks: dict[str, Callable[[Path], object]] = {
            "identity.json": lambda path: run_hash.read_definition(path.parent),
            METRICS: _check_lines,
            SESSIONS: _check_lines,
            TARGET: lambda path: check_target(path.parent),
        }
        for name, check in checks.items():
            path = self.path / name
            if path.exists() or name == "identity.json":
                found.setdefault(name, None)
                try:
                    check(path)
                except DataError as error:
                    found[name] = str(error).removeprefix(f"{path}: ")
        return {self.path / name: problem for name, problem in found.items()}

    def _missing_records(self) -> dict[str, str | None]:
        """Files that say less than the committed steps, and what they lack."""
        found: dict[str, str | None] = {}
        steps = [manifest.step for manifest in self.sound]
        newest, done = self.newest, {record["epoch"] for record in self.history}
        # A run that was last asked for fewer epochs than it has done tells of those alone.
        asked, _ = read_target(self.path)
        last = min(newest.epoch, newest.epoch if asked is None else asked) if newest else 0
        if missing := [epoch for epoch in range(1, last + 1) if epoch not in done]:
            found[METRICS] = f"it lacks the records of epochs {listed(missing)}"
        ended = max((session["end_step"] for session in read_sessions(self.path)), default=None)
        # The time of the newest step may not have been written any more.
        if ended is not None and len(steps) > 1 and ended < steps[-2]:
            found[SESSIONS] = f"it ends at step {ended}, before the newest checkpoints"
        return found

    @property
    def holder(self) -> str | None:
        """The process that writes to the store at this moment; None: there is none."""
        lock = self.path / "owner.json"
        record = owner.read_owner(lock)
        return str(record) if record and record.is_alive(lock, time.time()) else None

    @property
    def state(self) -> str:
        """``training``, ``damaged``, ``empty`` or ``idle``; checksums are not compared for this."""
        if self.holder:
            return "training"
        if any(step.problem(thorough=False) for step in self.steps):
            return "damaged"
        return "idle" if self.steps else "empty"

    @property
    def changed(self) -> float:
        """Time of the last change, in seconds since 1970."""
        files = [step.path / "manifest.json" for step in self.steps]
        files += [self.path / name for name in (METRICS, "identity.json")]
        return max((path.stat().st_mtime for path in files if path.is_file()), default=0.0)

    @property
    def size(self) -> int:
        """Bytes of all files of the run."""
        return disk_usage([self.path])[0]

    @property
    def leftovers(self) -> list[Path]:
        """Files that a killed process left behind."""
        return sorted(path for pattern in _LEFTOVERS for path in self.path.glob(pattern))

    def store(self) -> CheckpointStore:
        """Return the store, to write to it or to find its newest intact step."""
        return CheckpointStore(self.path, self.run_hash, "")


def _check_lines(path: Path) -> None:
    if damaged := damaged_lines(path):
        raise DataError(f"{path}: its lines {listed(damaged)} are damaged and left out")


def find_runs(root: Path) -> list[Run]:
    """Return the runs below a directory, ordered by name; raises `DataError` if it does not exist."""
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; name the one with the stores by --root")
    return [
        Run(path, *path.parts[-4:])
        for path in sorted(root.glob("*/*/seed*/*"))
        if (path / "identity.json").is_file() or any(path.glob("step_*"))
    ]


def newest_of_family(runs: Iterable[Run]) -> dict[str, Run]:
    """Return the run that changed last for each experiment, layout and seed."""
    return {run.family: run for run in sorted(runs, key=lambda run: run.changed)}


def select(runs: Sequence[Run], names: Iterable[str]) -> list[Run]:
    """Return the runs with these paths, or whose names begin with these; all runs if there are none.

    Raises `DataError` if there is no run of a name.
    """
    names = list(names)
    chosen = {run.path: run for name in names for run in _matching(runs, name)}
    return list(chosen.values()) if names else list(runs)


def select_one(runs: Sequence[Run], name: str) -> Run:
    """Return the run of a name; of several run hashes, the one that changed last.

    Raises `DataError` if there is no run of this name, or there are several experiments, layouts or seeds.
    """
    newest = newest_of_family(_matching(runs, name))
    if len(newest) > 1:
        raise DataError(f"{name}: fits {', '.join(sorted(newest))}; name one of them")
    return next(iter(newest.values()))


def disk_usage(paths: Iterable[Path]) -> tuple[int, int]:
    """Return the bytes below paths, and how many of them their removal would free.

    Steps that earlier versions published have two names (hard links): removing one frees nothing.
    """
    total = freed = 0
    for path in paths:
        for file in [path, *path.rglob("*")]:
            try:
                status = file.lstat()
            except FileNotFoundError:  # removed by the training meanwhile
                continue
            if not file.is_dir():
                total += status.st_size
                freed += status.st_size if status.st_nlink == 1 else 0
    return total, freed


def session_statistics(
    sessions: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]], step: int
) -> list[dict[str, Any]]:
    """Return the sessions of a run with their results.

    Sessions and history are those of a checkpoint or a receipt that was saved after ``step`` optimiser
    steps. Each session gets ``steps`` (without those that a kill lost, which the next session repeated),
    ``epochs`` and ``seconds`` (of the epochs that it finished), ``samples_per_second`` (mean over these
    epochs, None without any) and ``validation_loss`` (of the last one).
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


def _matching(runs: Sequence[Run], name: str) -> list[Run]:
    """Runs below a path, else those whose name has these parts, else those with a shortened last part."""
    path = os.path.abspath(name)  # noqa: PTH100  not `resolve`: links stay as they are named
    parts = tuple(part for part in name.split("/") if part)
    whole, last = parts[:-1], parts[-1] if parts else "/"
    alike = [
        run for run in runs if len(run.parts) > len(whole) and run.parts[: len(whole)] == whole
    ]
    found = (
        [run for run in runs if (os.path.abspath(run.path) + os.sep).startswith(path + os.sep)]  # noqa: PTH100
        or [run for run in alike if run.parts[len(whole)] == last]
        or [run for run in alike if run.parts[len(whole)].startswith(last)]
    )
    if not found:
        known = ", ".join(sorted({run.family for run in runs})) or "none"
        raise DataError(f"{name}: no such run; there are {known}")
    return found
