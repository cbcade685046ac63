"""Checkpoints that survive kills, power cuts and bit rot.

A store is a directory that belongs to one run::

    identity.json       definition of the run: what decides the weights
    owner.json          process that writes now
    metrics.jsonl       one line per epoch
    target.json         epochs that were requested last
    sessions.jsonl      where the time of each session went
    step_0000000120/    state.pt, then manifest.json: the commit record; the tensors of a model that is
                        divided among processes are in shards/

A step counts only if its manifest is intact and the checksums of its data agree; any other is ignored.
Files and directories are synced before the rename that commits them; leftovers of a kill have other names
(``tmp_*``) and are removed by the next owner. Old steps are removed, but milestones stay: the workflow's
outputs are copies of them, and are restored from them.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from millrace.errors import DataError, first_line
from millrace.files import atomic_write, output_errors, sync
from millrace.input_files import check_file
from millrace.sealed import checksum, seal, write_sealed
from millrace.training.owner import Owner

_STATE, _MANIFEST, _SHARDS = "state.pt", "manifest.json", "shards"
_FICLONE = 0x40049409  # linux/fs.h
UNTOUCHED = (
    "the last committed step is untouched: make room or give write permission, and run the same "
    "command again"
)
"""What an `OutputError` says of a store in training."""


@dataclass(frozen=True)
class Position:
    """Progress of training."""

    step: int
    """Optimiser steps done."""
    epoch: int
    """Epochs completed."""
    batch: int
    """Batches done of the next epoch."""


@dataclass(frozen=True)
class Manifest(Position):
    """Commit record of a step."""

    size: int
    crc32: int
    milestone: bool
    run_hash: str
    """Called ``identity`` in the file."""
    code_version: str
    token: int
    """Fencing token of the owner that wrote it."""
    shards: dict[str, list[int]] = field(default_factory=dict)
    """Size and checksum of each file of a state in shards."""

    @property
    def files(self) -> dict[str, tuple[int, int]]:
        """Size and checksum of all files of the step."""
        shards = {f"{_SHARDS}/{name}": (size, crc) for name, (size, crc) in self.shards.items()}
        return {_STATE: (self.size, self.crc32), **shards}

    @classmethod
    def read(cls, directory: Path) -> "Manifest | None":
        """Read the manifest of a step; None: missing or damaged."""
        try:
            record = json.loads((directory / _MANIFEST).read_text())
            sealed, run_hash = record.pop("seal"), record.pop("identity")
            manifest = cls(**record, run_hash=run_hash)
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return None
        return manifest if sealed == seal(manifest._record()) else None

    def problem(self, directory: Path, thorough: bool = True) -> str | None:
        """Return what is wrong with the files of a step, which are read if ``thorough``; None: nothing."""
        if directory.name.removeprefix("tmp_") != step_name(self.step):
            # Copied or renamed by hand: under a larger number it would be taken for the newest.
            return f"it holds step {self.step}, which is not the one of its name"
        for name, (expected, crc) in self.files.items():
            file = directory / name
            try:
                size = file.stat().st_size
                if size != expected:
                    return f"{name} has {size} bytes, expected {expected}"
                if thorough and checksum(file) != crc:
                    return f"the checksum of {name} is not the one of its manifest"
            except OSError as error:  # missing, or on a bad sector
                return f"{name} cannot be read ({error.strerror})"
        return None

    def write(self, directory: Path) -> None:
        """Write the manifest of a step."""
        write_sealed(directory / _MANIFEST, self._record())

    def _record(self) -> dict[str, Any]:
        record = asdict(self)
        record["identity"] = record.pop("run_hash")
        if not self.shards:
            del record["shards"]  # as in versions without shards
        return record


def step_name(step: int) -> str:
    """Name of the directory of a step."""
    return f"step_{step:010d}"


@dataclass(frozen=True)
class Checkpoint:
    """A committed step whose data was found intact."""

    path: Path
    """The data file."""
    manifest: Manifest

    def load(self) -> dict[str, Any]:
        """Load the state with `load_state`."""
        return load_state(self.path)


def load_state(path: Path, full: bool = True) -> dict[str, Any]:
    """Read a state file on the CPU; executes nothing.

    Shards are put together with ``full``; otherwise the result has their directory under ``shards``. Raises
    `DataError` if the file is missing or damaged, or holds anything but tensors and plain values.
    """
    check_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint; run the train stage first") from None
    except Exception as error:
        raise DataError(f"{path}: not a readable checkpoint ({first_line(error)})") from None
    if not isinstance(state, dict):
        raise DataError(
            f"{path}: not a checkpoint of Millrace, it holds a {type(state).__name__}; give one that the "
            "train stage wrote"
        )
    if not is_sharded(state):
        return state
    # Imported here, because it takes as long as the rest of an evaluation's start.
    from millrace.training.parallel.checkpoints import assemble

    shards = path.parent / _SHARDS
    return assemble(state, shards) if full else state | {"shards": str(shards)}


def is_sharded(state: Mapping[str, Any]) -> bool:
    """Whether the tensors of a state are in shards beside it."""
    return "sharded" in state


def weights_of(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Weights for forecasts: those of the best epoch or the averaged ones, if they were kept."""
    names = ("best_model", "ema_model", "model")
    return next(state[name] for name in names if name in state)


class CheckpointStore:
    """Committed steps of one run, in the directory ``root``, which is made if missing.

    Steps of another run hash are never used. The version of the code is recorded in every manifest;
    ``keep`` steps are kept besides the milestones.
    """

    def __init__(self, root: Path, run_hash: str, code_version: str, keep: int = 2) -> None:
        self.root = root
        self.run_hash = run_hash
        self._code_version, self._keep = code_version, keep
        self._owner: Owner | None = None

    @contextlib.contextmanager
    def writing(self) -> Iterator["CheckpointStore"]:
        """Own the store while the context is open, and remove leftovers of a kill.

        Raises `LockedError` if another process is writing.
        """
        with contextlib.ExitStack() as stack:
            with output_errors(self.root, UNTOUCHED):
                self.root.mkdir(parents=True, exist_ok=True)
                self._owner = stack.enter_context(Owner.claim(self.root / "owner.json"))
            for leftover in self.root.glob("tmp_*"):
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                yield self
            finally:
                self._owner = None

    def commit(
        self,
        state: Mapping[str, Any],
        position: Position,
        milestone: bool,
        write_shards: Callable[[Path], dict[str, list[int]]] | None = None,
    ) -> Checkpoint:
        """Save a state so that it is either complete or absent; a milestone is kept permanently.

        The state holds tensors, and plain values that JSON could hold. ``write_shards`` is called with a
        new directory, into which all processes write their tensors; it returns size and checksum of each
        file.

        Raises `OutputError` for no space, exceeded quota or read-only: nothing of the attempt stays behind.
        Raises `LockedError` if another process has taken the store over.
        """
        owner = self._owner
        assert owner is not None, "commit a checkpoint inside CheckpointStore.writing()"
        temporary = self.root / f"tmp_{position.step:010d}_{owner.token}"
        target = self.root / step_name(position.step)
        try:
            with output_errors(self.root, UNTOUCHED):
                temporary.mkdir()
                _write_state(state, temporary / _STATE)
                shards = write_shards(temporary / _SHARDS) if write_shards else {}
                manifest = Manifest(
                    **asdict(position),
                    size=(temporary / _STATE).stat().st_size,
                    crc32=checksum(temporary / _STATE),
                    milestone=milestone,
                    run_hash=self.run_hash,
                    code_version=self._code_version,
                    token=owner.token,
                    shards=shards,
                )
                manifest.write(temporary)
                owner.check()
                if target.exists():
                    # Only a damaged step is ever repeated.
                    discard(target, ignore_errors=True)
                temporary.rename(target)
                sync(self.root)
        except FileNotFoundError:
            owner.check()  # a new owner removes what the old one was writing
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune(target)
        return Checkpoint(target / _STATE, manifest)

    def latest(self, max_epoch: int | None = None) -> Checkpoint | None:
        """Find the newest intact step, by number, at or before the end of an epoch if one is given."""
        for directory in sorted(self.root.glob("step_*"), reverse=True):
            checkpoint = self._verified(directory, max_epoch)
            if checkpoint is not None:
                return checkpoint
        return None

    def at_epoch(self, epoch: int) -> Checkpoint | None:
        """Find the intact step at the end of an epoch."""
        for directory in self.root.glob("step_*"):
            manifest = Manifest.read(directory)
            if manifest is not None and (manifest.epoch, manifest.batch) == (epoch, 0):
                checkpoint = self._verified(directory, epoch)
                if checkpoint is not None:
                    return checkpoint
        return None

    def discard_within(self, epoch: int) -> None:
        """Remove the steps in the midst of the epoch after ``epoch``, which is trained anew."""
        for directory in self.root.glob("step_*"):
            record = Manifest.read(directory)
            if record is not None and record.epoch == epoch and record.batch:
                with contextlib.suppress(OSError):
                    discard(directory)

    def keep_permanently(self, checkpoint: Checkpoint) -> None:
        """Make a step a milestone."""
        if not checkpoint.manifest.milestone:
            replace(checkpoint.manifest, milestone=True).write(checkpoint.path.parent)

    def _verified(self, directory: Path, max_epoch: int | None) -> Checkpoint | None:
        manifest = Manifest.read(directory)
        if manifest is None or manifest.run_hash != self.run_hash:
            return None
        if max_epoch is not None and (manifest.epoch, manifest.batch) > (max_epoch, 0):
            return None
        return None if manifest.problem(directory) else Checkpoint(directory / _STATE, manifest)

    def _prune(self, newest: Path) -> None:
        """Remove all steps but milestones and the last few, both those up to ``newest`` and those of all.

        The last end of an epoch stays, too: training may be rolled back to it. Steps beyond ``newest``
        exist when a run is asked for an epoch that it has passed. A step whose manifest cannot be read may
        be a milestone, and is kept.
        """
        manifests = {path: Manifest.read(path) for path in sorted(self.root.glob("step_*"))}
        passing = [path for path, record in manifests.items() if record and not record.milestone]
        until = [path for path in passing if path <= newest]
        ends = [p for p, record in manifests.items() if record and not record.batch and p <= newest]
        for path in {*passing[: -self._keep]} - {*until[-self._keep :], *ends[-1:]}:
            with contextlib.suppress(OSError):
                discard(path)


def discard(path: Path, ignore_errors: bool = False) -> None:
    """Remove a step, or another file or directory of a store."""
    # Renamed first: a kill must not leave part of a step under its name.
    away = path.rename(path.with_name(f"tmp_{path.name}"))
    if away.is_dir():
        shutil.rmtree(away, ignore_errors)
    else:
        away.unlink()


def publish(checkpoint: Checkpoint, output: Path) -> None:
    """Copy a committed state to the output of a rule; shards are put together.

    The copy shares no bytes with the store, so that damage to one leaves the other. Where the file system
    can clone, it takes no space. Its time is that of the copy, because a workflow would make an output
    again that is older than its inputs.
    """
    with atomic_write(output) as partial:
        if checkpoint.manifest.shards:
            _write_state(checkpoint.load(), partial)
        elif not _clone(checkpoint.path, partial):
            shutil.copyfile(checkpoint.path, partial)


def _clone(source: Path, target: Path) -> bool:
    """Let a new file share the blocks of another until one of them is written (XFS, Btrfs, some Lustre)."""
    with source.open("rb") as original, target.open("wb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
        except OSError:
            return False
    return True


def _write_state(state: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        # torch hides the error of the file system behind one of its archive writer.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
