"""Checkpoints that survive kills, power cuts and bit rot.

A store is a directory that belongs to one run::

    identity.json       what decides the weights
    owner.json          who writes now
    metrics.jsonl       one line per epoch
    step_0000000120/    state.pt, then manifest.json: the commit record

A step counts only if its manifest is there and the checksum of its data agrees; anything else is left
over from a kill and is removed by the next owner. Files and directories are synced before the rename
that commits them. Old steps go, milestones stay: they are what the workflow's outputs link to.
"""

import contextlib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from millrace.errors import DataError, ExitCode, UserError
from millrace.training.owner import Owner

_STATE, _MANIFEST = "state.pt", "manifest.json"
_CHUNK = 1 << 20


class StorageError(UserError):
    """The file system refused to take a checkpoint; the steps before it are untouched."""

    exit_code = ExitCode.NO_SPACE


@dataclass(frozen=True)
class Position:
    """How far training has come."""

    step: int
    """Optimiser steps done."""
    epoch: int
    """Epochs completed."""
    batch: int
    """Batches done of the epoch after those."""


@dataclass(frozen=True)
class Manifest:
    """Commit record of a step."""

    step: int
    """Optimiser steps done."""
    epoch: int
    """Epochs completed."""
    batch: int
    """Batches done of the epoch after those."""
    size: int
    crc32: int
    milestone: bool
    identity: str
    code_version: str
    token: int
    """Fencing token of the owner that wrote it."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed step whose data was found intact."""

    path: Path
    """The data file."""
    manifest: Manifest

    def load(self) -> dict[str, Any]:
        """Read tensors and plain values, on the CPU; executes nothing."""
        return load_state(self.path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state file; refuses anything but tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint; run the train stage first") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable checkpoint ({reason})") from None


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


class CheckpointStore:
    """Committed steps of one run.

    Parameters
    ----------
    root : Path
        Directory of the run; made if missing.
    identity : str
        Digest of what decides the weights; steps of another identity are never used.
    code_version : str
        Recorded in every manifest.
    keep : int
        Steps kept besides the milestones.
    """

    def __init__(self, root: Path, identity: str, code_version: str, keep: int = 2) -> None:
        self.root = root
        self.identity = identity
        self._code_version, self._keep = code_version, keep
        self._owner: Owner | None = None

    @contextlib.contextmanager
    def writing(self) -> Iterator["CheckpointStore"]:
        """Own the store: refuse if someone else is writing, remove what a kill left behind."""
        with _storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with Owner.claim(self.root / "owner.json") as owner:
            self._owner = owner
            for leftover in self.root.glob("tmp_*"):
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                yield self
            finally:
                self._owner = None

    def commit(self, state: Mapping[str, Any], position: Position, milestone: bool) -> Checkpoint:
        """Save a state so that it is either there whole or not at all.

        Parameters
        ----------
        state : mapping
            Tensors, and plain values that JSON could hold.
        position : Position
            How far training has come.
        milestone : bool
            Keep it for good.

        Raises
        ------
        StorageError
            No space, quota, read-only: nothing of the attempt stays behind.
        UserError
            Another process has taken the store over.
        """
        if self._owner is None:
            raise RuntimeError("a checkpoint is committed inside CheckpointStore.writing()")
        temporary = self.root / f"tmp_{position.step:010d}_{self._owner.token}"
        try:
            with _storage_errors(self.root):
                temporary.mkdir()
                _write_state(state, temporary / _STATE)
                manifest = Manifest(
                    step=position.step,
                    epoch=position.epoch,
                    batch=position.batch,
                    size=(temporary / _STATE).stat().st_size,
                    crc32=checksum(temporary / _STATE),
                    milestone=milestone,
                    identity=self.identity,
                    code_version=self._code_version,
                    token=self._owner.token,
                )
                write_json(temporary / _MANIFEST, asdict(manifest))
                _sync(temporary)
                self._owner.check()
                target = self.root / f"step_{position.step:010d}"
                if target.exists():
                    # Only a damaged step is ever trained again.
                    shutil.rmtree(target)
                temporary.rename(target)
                _sync(self.root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune()
        return Checkpoint(target / _STATE, manifest)

    def latest(self, max_epoch: int | None = None) -> Checkpoint | None:
        """Find the newest intact step, by step number, never by file time.

        Parameters
        ----------
        max_epoch : int, optional
            Look only at steps that lie at or before the end of this epoch.
        """
        for directory in sorted(self.root.glob("step_*"), reverse=True):
            checkpoint = self._verified(directory, max_epoch)
            if checkpoint is not None:
                return checkpoint
        return None

    def at_epoch(self, epoch: int) -> Checkpoint | None:
        """Find the intact step at the end of an epoch."""
        for directory in self.root.glob("step_*"):
            manifest = self._manifest(directory)
            if manifest is not None and (manifest.epoch, manifest.batch) == (epoch, 0):
                return self._verified(directory, epoch)
        return None

    def keep_for_good(self, checkpoint: Checkpoint) -> None:
        """Make a step a milestone."""
        if not checkpoint.manifest.milestone:
            record = asdict(checkpoint.manifest) | {"milestone": True}
            write_json(checkpoint.path.with_name(_MANIFEST), record)

    def _verified(self, directory: Path, max_epoch: int | None) -> Checkpoint | None:
        manifest = self._manifest(directory)
        if manifest is None or manifest.identity != self.identity:
            return None
        if max_epoch is not None and (manifest.epoch, manifest.batch) > (max_epoch, 0):
            return None
        state = directory / _STATE
        if not state.is_file() or state.stat().st_size != manifest.size:
            return None
        return Checkpoint(state, manifest) if checksum(state) == manifest.crc32 else None

    @staticmethod
    def _manifest(directory: Path) -> Manifest | None:
        try:
            return Manifest(**json.loads((directory / _MANIFEST).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _prune(self) -> None:
        manifests = {path: self._manifest(path) for path in sorted(self.root.glob("step_*"))}
        passing = [path for path, record in manifests.items() if not (record and record.milestone)]
        for path in passing[: -self._keep or None]:
            shutil.rmtree(path, ignore_errors=True)


def publish(checkpoint: Checkpoint, output: Path) -> None:
    """Give a committed state a second name, the output of a rule.

    A hard link where the file system allows it, else a copy. Its time is set to now: a workflow would
    take an output older than its inputs for stale.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    with _storage_errors(output.parent):
        temporary.unlink(missing_ok=True)
        try:
            os.link(checkpoint.path, temporary)
        except OSError:
            shutil.copyfile(checkpoint.path, temporary)
            _sync(temporary)
        os.utime(temporary)
        temporary.replace(output)
        # Renaming one of two links to the same file onto the other does nothing and leaves both.
        temporary.unlink(missing_ok=True)
        _sync(output.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_state(state: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise StorageError(
            f"{directory}: cannot write a checkpoint ({os.strerror(error.errno)}); the last committed "
            "step is untouched: make room or give write permission and run the same command again"
        ) from error
    except RuntimeError as error:
        # torch.save reports a full disk as a failed write of its zip archive.
        if "PytorchStreamWriter" not in str(error) and "write" not in str(error):
            raise
        raise StorageError(f"{directory}: cannot write a checkpoint ({error})") from error
