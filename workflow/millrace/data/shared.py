"""What the ranks of a node hold in common: read by one of them, and mapped into the memory of all.

The agent of the node makes a folder for it on the node's disk, see `millrace.launch.node_folder`. Pages of
files there are in memory once, however many ranks read them.
"""

import fcntl
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from millrace.processes import SHARED_SAMPLES

LEFT_FREE = 0.05
"""Share of the disk that stays free: jobs write there, too."""

T = TypeVar("T")


def shared(key: Any, make: Callable[[], T]) -> T:
    """What ``make`` gives, made by one rank of the node for all that ask with this key.

    ``key`` holds all that it depends on, as plain values. Its tensors are on the CPU and are not written
    to; they have the same values, bit by bit, wherever they were made. Without a folder or room in it, or
    if it cannot be pickled, each rank makes it.
    """
    if SHARED_SAMPLES not in os.environ:
        return make()
    name = hashlib.sha256(json.dumps(key, default=str).encode()).hexdigest()[:32]
    path = Path(os.environ[SHARED_SAMPLES]) / f"{name}.pt"
    # Of a rank that is killed the lock is taken by the next one, which makes it again.
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            made = make()
            if not _write(made, path):
                return made
        return torch.load(path, mmap=True, weights_only=False)


def _write(made: Any, path: Path) -> bool:
    """Whether it could be written."""
    disk, size = shutil.disk_usage(path.parent), sum(one.nbytes for one in tensors_in(made))
    partial = path.with_suffix(".part")
    try:
        if size > disk.free - LEFT_FREE * disk.total:
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
