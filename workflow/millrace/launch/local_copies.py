"""Copies of sample files on a disk of the node, for file systems that are slow where many nodes read."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from millrace.data.hdf5 import parts_of
from millrace.data.samples import LOCAL_COPIES, Files, datasets_of
from millrace.errors import DataError

# Of this node alone: locks of a folder that nodes share need not hold between them.
_PREFIX = f"millrace_samples_{os.getuid()}_{socket.gethostname()}_"
_LOCK = ".lock"
_LEFT_FREE = 0.05
"""Share of the disk that stays free: jobs write there, too."""


@contextlib.contextmanager
def local_copies(files: Files) -> Iterator[dict[str, str]]:
    """Copy sample files, and the parts that they read, to ``$TMPDIR`` while the context lasts.

    Gives the environment in which `millrace.data.samples.open_dataset` opens the copies. If they do not
    fit, or cannot be made, it says so and gives none: the files are read where they are. Copies that a
    killed job has left are removed.
    """
    paths = [path for one in datasets_of(files) for path in one.values()]
    place = Path(tempfile.gettempdir())
    _sweep(place)
    with contextlib.ExitStack() as stack:
        environment = {}
        try:
            _check_room(paths, place)
            folder = stack.enter_context(_folder(place))
            copied = {
                str(path): _copy(path, folder / str(number)) for number, path in enumerate(paths)
            }
            (folder / "copies.json").write_text(json.dumps(copied))
            environment[LOCAL_COPIES] = str(folder / "copies.json")
        except (OSError, DataError) as error:
            stack.close()  # what is there already takes room
            reason = getattr(error, "strerror", None) or error
            print(
                f"train.local_copies: {reason} in {place}; samples are read from where they are",
                file=sys.stderr,
            )
        yield environment


@contextlib.contextmanager
def _folder(place: Path) -> Iterator[Path]:
    """A new folder, which is locked as long as this process lives."""
    while True:
        number, name = tempfile.mkstemp(_LOCK, _PREFIX, place)
        fcntl.flock(number, fcntl.LOCK_EX)
        if os.fstat(number).st_nlink:
            break
        os.close(number)  # another job has swept it away before it was locked
    folder = Path(name).with_suffix("")
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        Path(name).unlink(missing_ok=True)
        os.close(number)


def _sweep(place: Path) -> None:
    """Remove copies whose job is dead."""
    for path in place.glob(f"{_PREFIX}*{_LOCK}"):
        with contextlib.suppress(OSError), path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()


def _check_room(paths: Sequence[Path], place: Path) -> None:
    size = sum((path.parent / name).stat().st_size for path in paths for name in _names(path))
    disk = shutil.disk_usage(place)
    if size > disk.free - _LEFT_FREE * disk.total:
        raise OSError(f"no room for {size / 1e9:.3g} GB beside {disk.free / 1e9:.3g} GB free")


def _copy(path: Path, folder: Path) -> str:
    """Copy a file and its parts, which it finds by their places relative to its own."""
    for name in _names(path):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, target)
    return str(folder / path.name)


def _names(path: Path) -> list[str]:
    """A file and its parts, relative to its folder."""
    names = [path.name, *parts_of(path)]
    if any(".." in Path(name).parts for name in names):
        raise OSError(f"{path} reads parts outside its folder")
    return names
