"""What the ranks of a node hold in common: read by one of them, and mapped into the memory of all.

The agent of the node makes a folder for it on the node's disk, see `millrace.launch.node_folder`. Pages of
files there are in memory once, however many ranks read them.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from millrace.files import leaves_room
from millrace.processes import SHARED_SAMPLES

LEFT_FREE = 0.05
"""Share of the disk that stays free: jobs write there, too."""

KEPT = 4
"""Batches that are kept for each group: with one a step, no rank is further ahead of another."""

T = TypeVar("T")


def shared(key: Any, make: Callable[[], T]) -> T:
    """What ``make`` gives, made by one rank of the node for all that ask with this key.

    ``key`` holds all that it depends on, as plain values. Its tensors are on the CPU and are not written
    to; they have the same values, bit by bit, wherever they were made. Without a folder or room in it, or
    if it cannot be pickled, each rank makes it.
    """
    if SHARED_SAMPLES not in os.environ:
        return make()
    path = Path(os.environ[SHARED_SAMPLES]) / f"{_name(key)}.pt"
    with _locked(path.with_suffix(".lock")):
        if not path.exists():
            made = make()
            if not _write(made, path):
                return made
        return _load(path)


def shared_in_group(key: Any, make: Callable[[], T], group: str) -> T:
    """As `shared`, for what all ranks of a group read in the same order, each once: batches.

    The last `KEPT` ones of the group are kept. A rank that is further behind makes its own again.
    """
    if SHARED_SAMPLES not in os.environ:
        return make()
    folder, prefix = Path(os.environ[SHARED_SAMPLES]), f"group_{group}_"
    path = folder / f"{prefix}{_name(key)}.pt"
    with contextlib.suppress(FileNotFoundError):
        return _load(path)
    with _locked(folder / f"{prefix}.lock"):
        with contextlib.suppress(FileNotFoundError):
            return _load(path)
        made = make()
        if _write(made, path):
            written = sorted(folder.glob(f"{prefix}*.pt"), key=lambda one: one.stat().st_mtime_ns)
            for old in written[:-KEPT]:
                old.unlink()  # whoever has mapped it keeps it
        return made


def _name(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, default=str).encode()).hexdigest()[:32]


def _load(path: Path) -> Any:
    return torch.load(path, mmap=True, weights_only=False)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Of a rank that is killed the lock is taken by the next one, which makes it again.
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(made: Any, path: Path) -> bool:
    """Whether it could be written."""
    size = sum(one.nbytes for one in tensors_in(made))
    partial = path.with_suffix(".part")
    try:
        if not leaves_room(path.parent, size, LEFT_FREE):
            return False
        torch.save(made, partial)
        partial.rename(path)
    # torch says RuntimeError of a full disk; the last two are said of classes that are in no module.
    except (OSError, RuntimeError, pickle.PickleError, AttributeError):
        partial.unlink(missing_ok=True)
        return False
    return True


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors of nested dataclasses and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
