"""Where a result comes from: versions of the code and its dependencies, and a fingerprint of raw data.

Nothing of the environment (variables, user, host, paths) is recorded, so that a result can be passed on.
"""

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from millrace import __version__
from millrace.errors import DataError
from millrace.input_files import folders_below, is_address

_RECORDED = ("numpy", "torch", "h5py")
_OF_STORES = ("zarr.json", ".zgroup", ".zmetadata", ".zarray")
"""Files that are in the folder of a Zarr store, or of an array in it."""


def fingerprint(directory: str | Path) -> str:
    """Hash the names and sizes of all files below a directory, 16 hexadecimal digits; links are followed.

    Modification times are left out on purpose: copying or touching raw data must not start days of
    training again. A change that keeps every size goes unnoticed: force the rule by its name then. An
    address stands for itself, so that planning needs no network: what is there, the jobs that read it
    compare. Raises `DataError` if the directory does not exist.
    """
    if is_address(directory):
        return str(directory)
    return _digest(_sizes(Path(directory)))


def raw_bytes(directory: str | Path) -> int:
    """Size of all files below a directory; links are followed. Raises errors like `fingerprint`."""
    return sum(size for _, size in _sizes(Path(directory)))


def raw_items(directory: str | Path) -> tuple[str, dict[str, tuple[str | int, int]]]:
    """Fingerprint of a directory, and the `stamp` and size of each of its files by name.

    A Zarr store is one of them, whatever the number of its files. Raises errors like `fingerprint`.
    """
    root = Path(directory)
    sizes = _sizes(root)
    marked = {path.parent for path, _ in sizes if path.name in _OF_STORES}
    items: dict[str, tuple[str | int, int]] = {}
    inside: dict[Path, list[tuple[Path, int]]] = {}
    for path, size in sizes:
        store = next((one for one in reversed(path.parents) if one in marked), None)
        if store is None:
            items[str(path)] = size, size
        else:
            inside.setdefault(store, []).append((path.relative_to(store), size))
    for store, found in inside.items():
        items[str(store)] = _digest(found), sum(size for _, size in found)
    return _digest(sizes), items


def stamp(path: Path) -> str | int:
    """What changes with the content of a file, its size, or with that of a folder, its `fingerprint`."""
    return fingerprint(path) if path.is_dir() else path.stat().st_size


def _digest(sizes: Sequence[tuple[Path, int]]) -> str:
    text = "\n".join(f"{path} {size}" for path, size in sizes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sizes(root: Path) -> list[tuple[Path, int]]:
    """Files below a directory, relative to it, and their sizes."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such directory; set `source` of the dataset to `demo` or to yours"
        )
    below = sorted(folder / name for folder, names in folders_below(root) for name in names)
    files = (path for path in below if path.is_file())
    return [(path.relative_to(root), path.stat().st_size) for path in files]


def code_version() -> str:
    """Package version, followed by ``+git describe`` where the package runs from its repository."""
    described = describe_repository()
    return f"{__version__}+{described}" if described else __version__


def provenance() -> dict[str, str | bool | None]:
    """Versions of the code and its main dependencies, git revision, and the time (UTC).

    ``git_revision`` and ``git_dirty`` are None where the package does not run from its repository; the
    version of a dependency that is not installed is None.
    """
    described = describe_repository()
    return {
        "millrace": __version__,
        "python": platform.python_version(),
        **{name: _installed(name) for name in _RECORDED},
        "git_revision": ask_git("rev-parse", "HEAD") if described else None,
        "git_dirty": described.endswith("-dirty") if described else None,
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def describe_repository() -> str:
    """``git describe`` of the repository that the package runs from; empty without one."""
    # An installed copy may lie inside a foreign repository (a virtual environment below a checkout):
    # only a repository that tracks this very file describes the package.
    if not ask_git("ls-files", "--error-unmatch", Path(__file__).name):
        return ""
    return ask_git("describe", "--always", "--dirty", "--tags")


@cache
def ask_git(*arguments: str) -> str:
    """What git answers in the directory of the package; empty if it fails."""
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    return done.stdout.strip()


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
