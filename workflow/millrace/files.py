"""Output files that are either complete or absent."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from millrace.errors import REFUSED, DataError, ExitCode, NotFiniteError, UserError


class OutputError(UserError):
    """The file system refused to store an output; nothing of it is left behind."""

    exit_code = ExitCode.NO_SPACE


@contextlib.contextmanager
def output_errors(path: Path, consequence: str = "nothing was kept") -> Iterator[None]:
    """Turn no space, exceeded quota and missing permission into an `OutputError` about ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        reason = os.strerror(error.errno)
        raise OutputError(f"{path}: cannot be written ({reason}); {consequence}") from error


def leaves_room(folder: Path, size: int, share: float) -> bool:
    """Whether ``size`` bytes more in a folder leave this share of its file system free."""
    disk = shutil.disk_usage(folder)
    return disk.free - size >= share * disk.total


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to ``path`` once it is complete and on the disk.

    The temporary file is hidden, lies beside ``path`` and always has the same name: the next writer
    overwrites what a killed one left. Raises `OutputError` for lack of space, quota or permission.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            yield partial
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a directory; it is renamed to ``path``, new or empty, once it is complete.

    Raises `DataError` if ``path`` holds something already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(
            f"{path}: expected a new or empty directory for simulated files; remove it or choose another"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON with `atomic_write`; raises `NotFiniteError` for NaN and infinity: JSON has none."""
    try:
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    except ValueError:
        raise NotFiniteError(
            f"{path}: nothing was written, because {_not_finite(value)} is infinite or NaN; look for such "
            "values in the data, or train again with a lower train.learning_rate"
        ) from None
    with atomic_write(path) as partial:
        partial.write_text(text)


def _not_finite(value: Any, name: str = "") -> str:
    """Name the first number in a JSON value that is not finite, by its keys joined by dots; else empty."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else name
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    items = value.items() if isinstance(value, dict) else ()
    found = (_not_finite(one, f"{name}.{key}".removeprefix(".")) for key, one in items)
    return next(filter(None, found), "")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
