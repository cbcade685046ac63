"""Copies of sample files on a disk of the node, for file systems that are slow where many nodes read."""

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from millrace.data.hdf5 import parts_of
from millrace.data.samples import LOCAL_COPIES, Files, datasets_of
from millrace.data.shared import LEFT_FREE
from millrace.errors import DataError
from millrace.files import leaves_room
from millrace.launch.node_folder import node_folder, sweep


@contextlib.contextmanager
def local_copies(files: Files) -> Iterator[dict[str, str]]:
    """Copy sample files, and the parts that they read, to ``$TMPDIR`` while the context lasts.

    Gives the environment in which `millrace.data.samples.open_dataset` opens the copies. If they do not
    fit, or cannot be made, it says so and gives none: the files are read where they are. Copies that a
    killed job has left are removed.
    """
    paths = [path for one in datasets_of(files) for path in one.values()]
    place = Path(tempfile.gettempdir())
    sweep()
    with contextlib.ExitStack() as stack:
        environment = {}
        try:
            _check_room(paths, place)
            folder = stack.enter_context(node_folder())
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


def _check_room(paths: Sequence[Path], place: Path) -> None:
    size = sum((path.parent / name).stat().st_size for path in paths for name in _names(path))
    if not leaves_room(place, size, LEFT_FREE):
        free = shutil.disk_usage(place).free
        raise OSError(f"no room for {size / 1e9:.3g} GB beside {free / 1e9:.3g} GB free")


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
