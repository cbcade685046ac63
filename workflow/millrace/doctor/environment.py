"""Checks of Python, its packages and the file system of the interpreter."""

import platform
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from millrace.doctor.checks import Check
from millrace.home import HOME

LOCK = "envs/requirements.lock"
# File systems that other machines see as well; all others are local.
_SHARED = re.compile(
    r"nfs|lustre|gpfs|mmfs|beegfs|ceph|cifs|smb|afs|panfs|wekafs|vast|glusterfs|orangefs|pvfs|daos"
    r"|fuse\.(?!snapfuse|portal|gvfsd|lxcfs)",
    re.IGNORECASE,
)


def check_environment(directory: Path) -> list[Check]:
    """Check the versions of packages, and the file system of Python for work in ``directory``."""
    return [check_packages(HOME), check_interpreter(directory)]


def check_packages(root: Path) -> Check:
    """Compare the installed dependencies of Millrace with ``envs/requirements.lock`` of a checkout."""
    name = "packages"
    lock = root / LOCK
    if not (lock.is_file() and (root / "pyproject.toml").is_file()):
        return Check.skipped(name, f"{lock}: not there, so nothing to compare with")
    wanted = dependencies(root)
    missing, other = compare_with_lock(root, {package: _version(package) for package in wanted})
    if missing:
        detail = f"not installed for {sys.executable}: {', '.join(missing)}"
        remedy = "Run `make setup` in the project's folder and use .venv/bin/python."
        return Check.failed(name, detail, remedy)
    if other:
        same, differ = len(wanted) - len(other), "; ".join(other.values())
        detail = f"{same} of {len(wanted)} as locked, but {differ}"
        return Check.warning(name, detail, "Run `make setup` for the versions that were tested.")
    version = platform.python_version()
    return Check.ok(name, f"Python {version}, {len(wanted)} packages as in {lock.name}")


def compare_with_lock(
    root: Path, versions: Mapping[str, str | None]
) -> tuple[list[str], dict[str, str]]:
    """Compare versions of packages with the lock of a checkout.

    Returns those that are missing, whose version is None, and those of another version than the locked one,
    with a text that names both.
    """
    pins = dict(line.split("==") for line in (root / LOCK).read_text().split() if "==" in line)
    pins = {_name(package): version for package, version in pins.items()}
    other = {
        package: f"{package} {version}, locked {pins[package]}"
        for package, version in versions.items()
        # Without the label of a build of torch, such as +cu130.
        if version and package in pins and version.partition("+")[0] != pins[package]
    }
    missing = [package for package, version in versions.items() if version is None]
    return missing, other


def dependencies(root: Path) -> list[str]:
    """Return the names of the packages that Millrace depends on, by a checkout."""
    return [_name(line) for line in _project(root)["dependencies"]]


def oldest_python(root: Path) -> tuple[int, ...]:
    """Return the oldest version of Python that a checkout runs with."""
    return tuple(map(int, re.findall(r"\d+", _project(root)["requires-python"])))


def _project(root: Path) -> dict[str, Any]:
    return dict(tomllib.loads((root / "pyproject.toml").read_text())["project"])


def check_interpreter(directory: Path) -> Check:
    """Check that compute nodes can see the file system of the interpreter."""
    name = "interpreter"
    # Not resolved: jobs start .venv, and a virtual environment needs its base as well.
    places = {place: mount(place) for place in sorted({Path(sys.prefix), Path(sys.base_prefix)})}
    home, _ = mount(directory)
    local = [p for p, (at, kind) in places.items() if at != home and not is_shared(kind)]
    found = ", ".join(f"{place} on {kind}" for place, (_, kind) in places.items())
    if not local:
        return Check.ok(name, found)
    return Check.warning(
        name,
        f"{found}: {local[0]} may not be there on compute nodes",
        "See whether the checks inside a job start; if not, make the environment with a Python from a "
        "shared file system: `make clean setup PYTHON=/shared/path/python3`.",
    )


def mount(path: Path) -> tuple[str, str]:
    """Return mount point and type of the file system of a path; an unlisted type is "unknown"."""
    path = path.resolve()
    best = ("/", "unknown")
    for part in psutil.disk_partitions(all=True):
        inside = path.is_relative_to(part.mountpoint)
        if inside and len(part.mountpoint) >= len(best[0]):
            best = (part.mountpoint, part.fstype)
    return best


def is_shared(kind: str) -> bool:
    """Whether file systems of a type are usually seen by other machines."""
    return bool(_SHARED.search(kind))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else requirement
