"""What the store of checkpoints needs of a file system: each operation is tried where runs will be."""

import fcntl
import getpass
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from millrace.doctor.checks import Check, ask, attempt
from millrace.doctor.environment import is_shared, mount
from millrace.errors import first_line
from millrace.files import sync

_GB = 1e9
_MAX_SKEW_S = 5.0
SLOW_SYNC_S = 1.0
_ELSEWHERE = "Put the project on another file system: work or scratch rather than home."


def check_filesystem(directory: Path, need_gb: float, why: str, cluster: bool) -> list[Check]:
    """Try the file system of the directory where ``runs/`` and ``results/`` will be.

    The required space is ``need_gb``, in 10⁹ bytes; ``why`` is the source of this number, for the table.
    With ``cluster``, other machines must see the file system.
    """
    checks = [check_kind(directory, cluster)]
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".doctor_", dir=directory))
    except OSError as error:
        detail = f"{directory}: {error.strerror}"
        return [*checks, Check.failed("write", detail, "Start in a folder that you may write to.")]
    try:
        operations: dict[str, Callable[[str, Path], Check]] = {
            "rename over a file": _check_rename,
            "hard link": _check_link,
            "exclusive mkdir": partial(_check_one_winner, make_directory),
            "exclusive create": partial(_check_one_winner, _create),
            "flock": _check_flock,
            "HDF5 and NetCDF": _check_hdf5,
            "fsync": _check_sync,
            "file times": _check_times,
        }
        checks += [
            attempt(name, partial(check, name, scratch)) for name, check in operations.items()
        ]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [*checks, check_space(directory, need_gb, why), check_quota(directory, need_gb)]


def check_kind(directory: Path, cluster: bool) -> Check:
    """Check the type of the file system; a local one cannot serve the nodes of a cluster."""
    at, kind = mount(directory)
    found = f"{directory} is on {kind}, mounted at {at}"
    if is_shared(kind) or not cluster:
        return Check.ok("file system", found)
    return Check.warning(
        "file system",
        f"{found}: often seen by one machine only",
        "See whether the checks inside a job find the folder; if not, move the project to a shared one.",
    )


def _check_rename(name: str, scratch: Path) -> Check:
    """A rename must replace an existing file in one step."""
    old, new = scratch / "old", scratch / "new"
    old.write_text("old")
    new.write_text("new")
    with old.open() as reader:
        new.replace(old)
        kept = reader.read()
    if old.read_text() != "new" or new.exists():
        return Check.failed(name, "the new content is not there", _ELSEWHERE)
    if kept != "old":
        return Check.failed(name, "a reader of the old file lost its content", _ELSEWHERE)
    return Check.ok(name, "replaces the whole file; readers keep the old content")


def _check_link(name: str, scratch: Path) -> Check:
    """The lock of a store is a hard link, which must be refused if its name exists."""
    file, link = scratch / "file", scratch / "link"
    file.write_text("x")
    try:
        os.link(file, link)
    except OSError as error:
        detail = f"refused ({error.strerror}); stores are locked by links"
        return Check.failed(name, detail, _ELSEWHERE)
    try:
        os.link(file, link)
    except FileExistsError:
        pass
    else:
        detail = "an existing name was linked a second time: two jobs could own a run"
        return Check.failed(name, detail, _ELSEWHERE)
    if file.stat().st_nlink != 2:
        remedy = "Do not trust the bytes that `millrace runs clean` says it frees."
        return Check.warning(name, "works, but links are not counted", remedy)
    return Check.ok(name, "made once, refused the second time")


def _check_one_winner(take: Callable[[Path], bool], name: str, scratch: Path) -> Check:
    """If four threads take a name at once, one may succeed; the checks inside a job use several nodes."""
    together = threading.Barrier(4)

    def take_it(_: int) -> bool:
        together.wait()
        return take(scratch / name)

    with ThreadPoolExecutor(4) as pool:
        won = sum(pool.map(take_it, range(4)))
    if won != 1:
        return Check.failed(name, f"{won} of 4 got the same name", _ELSEWHERE)
    return Check.ok(name, "one of 4 gets the name")


def make_directory(path: Path) -> bool:
    """Make a directory, as a layout does to claim a race; False: it exists already."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _create(path: Path) -> bool:
    """Make a file with ``O_CREAT | O_EXCL``; False: it exists already."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _check_flock(name: str, scratch: Path) -> Check:
    """`flock` helps the lock of a store, which works without it."""
    with (scratch / "locked").open("w") as first, (scratch / "locked").open() as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Check.warning(
                name,
                f"not available ({error.strerror}); the lock of a store works without it",
                "Pass --nolock to Snakemake only if it complains about locks, and start it once.",
            )
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return Check.ok(name, "locks out a second opening on this machine")
    detail = "locks nobody out; the lock of a store works without it"
    return Check.warning(name, detail, "Do not rely on flock in scripts of your own here.")


def _check_hdf5(name: str, scratch: Path) -> Check:
    """Samples are HDF5 and many raw files NetCDF: their library locks what it reads, unless told not to."""
    import h5py

    file = scratch / "samples.h5"
    with file.open("wb") as output, h5py.File(output, "w") as written:
        written["values"] = range(1000)
    try:
        with h5py.File(file, "r") as read:
            intact = read["values"][:].tolist() == list(range(1000))
    except OSError as error:
        remedy = f"Unset HDF5_USE_FILE_LOCKING, or set it to FALSE. {_ELSEWHERE}"
        return Check.failed(name, f"what was written cannot be read ({first_line(error)})", remedy)
    if not intact:
        return Check.failed(name, "other values are read than were written", _ELSEWHERE)
    return Check.ok(name, "written and read")


def _check_sync(name: str, scratch: Path) -> Check:
    """Files and directories must be written to the disk, in reasonable time."""
    file = scratch / "synced"
    started = time.monotonic()
    file.write_bytes(bytes(1 << 20))
    sync(file)
    sync(scratch)
    seconds = time.monotonic() - started
    if seconds > SLOW_SYNC_S:
        remedy = "Save less often (`save_every`), or put the project on a faster file system."
        return Check.warning(name, f"{seconds:.1f} s for 1 MB and its directory", remedy)
    return Check.ok(name, f"{1e3 * seconds:.0f} ms for 1 MB and its directory")


def _check_times(name: str, scratch: Path) -> Check:
    """The file server's clock must agree with this machine's: locks and Snakemake compare times."""
    before = time.time()
    file = scratch / "timed"
    file.write_text("x")
    os.utime(file)
    changed, after = file.stat().st_mtime, time.time()
    # Times of files may be in whole seconds.
    skew = min(0.0, changed + 1.0 - before) if changed < before else max(0.0, changed - after)
    if abs(skew) > _MAX_SKEW_S:
        detail = f"the file server's clock is {skew:+.1f} s from this machine's"
        remedy = "Ask the cluster's support to set the clock: outputs would look older than their inputs."
        return Check.failed(name, detail, remedy)
    return Check.ok(name, f"{abs(skew):.1f} s from this machine's clock")


def check_space(directory: Path, need_gb: float, why: str) -> Check:
    """Check free space and free inodes of the file system."""
    name = "free space"
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize / _GB
    found = f"{free:,.1f} GB free, {need_gb:,.1f} GB wanted ({why})"
    if free < need_gb:
        remedy = "Make room, or say what you need with --need-gb if the estimate is wrong."
        return Check.failed(name, found, remedy)
    if status.f_files and status.f_favail < 10_000:
        remedy = "Remove files that are not needed, such as caches and old environments."
        return Check.warning(
            name, f"{found}, but only {status.f_favail} more files are possible", remedy
        )
    return Check.ok(name, found)


def check_quota(directory: Path, need_gb: float) -> Check:
    """Check the remaining quota, where ``lfs quota`` or ``quota`` reports it."""
    name = "quota"
    at, kind = mount(directory)
    left = _lustre_left(at) if "lustre" in kind else _unix_left(at)
    if left is None:
        return Check.skipped(
            name,
            "neither `lfs quota` nor `quota` reports it; see the cluster's own command, e.g. `myquota`",
        )
    if left == math.inf:
        return Check.ok(name, "no limit")
    found = f"{left:,.1f} GB left, {need_gb:,.1f} GB wanted"
    if left < need_gb:
        remedy = "Remove what is not needed (`millrace runs clean`) or ask for more quota."
        return Check.failed(name, found, remedy)
    return Check.ok(name, found)


def _lustre_left(at: str) -> float | None:
    answer = ask("lfs", "quota", "-q", "-u", getpass.getuser(), at)
    # "/scratch 1234* 0 20000 - 17 0 0 -" in kB; a star marks an exceeded limit.
    return _left(answer.out.split()[1:4]) if answer.code == 0 else None


def _unix_left(at: str) -> float | None:
    answer = ask("quota", "-w", "-u", "-p", "--show-mntpoint")
    for line in answer.out.splitlines():
        words = line.split()
        if at in words[:2]:
            return _left(words[words.index(at) + 1 :][:3])
    return None


def _left(words: Sequence[str]) -> float | None:
    """Remaining GB from used space, soft and hard limit in kB; infinity: no limit, None: not numbers."""
    try:
        used, soft, hard = (int(word.rstrip("*")) for word in words)
    except ValueError:
        return None
    limits = [limit for limit in (soft, hard) if limit > 0]
    return (min(limits) - used) * 1024 / _GB if limits else math.inf
