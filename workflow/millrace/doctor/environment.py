"""Checks of Python, its packages and the file system of the interpreter."""

import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import psutil

from millrace.doctor.checks import Check

ROOT = Path(__file__).parents[3]
# File systems that other machines see as well; all others are local.
_SHARED = re.compile(
    r"nfs|lustre|gpfs|mmfs|beegfs|ceph|cifs|smb|afs|panfs|wekafs|vast|glusterfs|orangefs|pvfs|daos"
    r"|fuse\.(?!snapfuse|portal|gvfsd|lxcfs)",
    re.IGNORECASE,
)


def check_environment(directory: Path) -> list[Check]:
    """Check the versions of packages, and the file system of Python for work in ``directory``."""
    return [check_packages(ROOT), check_interpreter(directory)]


def check_packages(root: Path) -> Check:
    """Compare the installed dependencies of Millrace with ``envs/requirements.lock`` of a checkout."""
    name = "packages"
    lock, project = root / "envs/requirements.lock", root / "pyproject.toml"
    if not (lock.is_file() and project.is_file()):
        return Check.skipped(name, f"{lock}: not there, so nothing to compare with")
    wanted = [_name(line) for line in tomllib.loads(project.read_text())["project"]["dependencies"]]
    pins = dict(line.split("==") for line in lock.read_text().split() if "==" in line)
    pins = {_name(package): version for package, version in pins.items()}
    missing, other = [], []
    for package in wanted:
        found = _version(package)
        if found is None:
            missing.append(package)
        elif package in pins and found != pins[package]:
            other.append(f"{package} {found}, locked {pins[package]}")
    if missing:
        detail = f"not installed for {sys.executable}: {', '.join(missing)}"
        remedy = "Run `make setup` in the project's folder and use .venv/bin/python."
        return Check.failed(name, detail, remedy)
    if other:
        detail = f"{len(wanted) - len(other)} of {len(wanted)} as locked, but {'; '.join(other)}"
        return Check.warning(name, detail, "Run `make setup` for the versions that were tested.")
    version = platform.python_version()
    return Check.ok(name, f"Python {version}, {len(wanted)} packages as in {lock.name}")


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


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else requirement


def _version(package: str) -> str | None:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None
