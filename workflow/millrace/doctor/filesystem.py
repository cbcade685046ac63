"""What the store of checkpoints needs of a file system: each operation is tried where runs will be."""

import fcntl
import getpass
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from millrace.doctor.checks import Check, ask, attempt
from millrace.doctor.environment import is_shared, mount
from millrace.files import sync

_GB = 1e9
_LARGEST_SKEW_S = 5.0
_SLOW_SYNC_S = 1.0
_ELSEWHERE = "Put the project on another file system: work or scratch rather than home."


def check_filesystem(directory: Path, need_gb: float, why: str, cluster: bool) -> list[Check]:
    """Try the file system of a directory.

    Parameters
    ----------
    directory : Path
        Where ``runs/`` and ``results/`` will be.
    need_gb : float
        Space that is wanted, in 10⁹ bytes.
    why : str
        Where this number comes from, for the table.
    cluster : bool
        Whether other machines have to see it.
    """
    checks = [check_kind(directory, cluster)]
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".doctor_", dir=directory))
    except OSError as error:
        return [
            *checks,
            Check.failed(
                "write",
                f"{directory}: {error.strerror}",
                "Start in a folder that you may write to.",
            ),
        ]
    try:
        tries: dict[str, Callable[[Path], Check]] = {
            "rename over a file": check_rename,
            "hard link": check_link,
            "exclusive mkdir": check_mkdir,
            "exclusive create": check_create,
            "flock": check_flock,
            "fsync": check_sync,
            "file times": check_times,
        }
        checks += [attempt(name, partial(test, scratch)) for name, test in tries.items()]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [*checks, check_space(directory, need_gb, why), check_quota(directory, need_gb)]


def check_kind(directory: Path, cluster: bool) -> Check:
    """Say which file system it is; a local one cannot serve the nodes of a cluster."""
    at, kind = mount(directory)
    said = f"{directory} is on {kind}, mounted at {at}"
    if is_shared(kind) or not cluster:
        return Check.ok("file system", said)
    return Check.warning(
        "file system",
        f"{said}: often seen by one machine only",
        "See whether the checks inside a job find the folder; if not, move the project to a shared one.",
    )


def check_rename(scratch: Path) -> Check:
    """A rename must replace an existing file, in one step."""
    old, new = scratch / "old", scratch / "new"
    old.write_text("old")
    new.write_text("new")
    descriptor = os.open(old, os.O_RDONLY)
    try:
        new.replace(old)
        still = os.read(descriptor, 9)
    finally:
        os.close(descriptor)
    if old.read_text() != "new" or new.exists():
        return Check.failed("rename over a file", "the new content is not there", _ELSEWHERE)
    if still != b"old":
        return Check.failed(
            "rename over a file", "a reader of the old file lost its content", _ELSEWHERE
        )
    return Check.ok("rename over a file", "replaces whole; readers keep the old content")


def check_link(scratch: Path) -> Check:
    """The lock of a store is a hard link: it must be made, and be refused where a name exists."""
    name = "hard link"
    file, link = scratch / "file", scratch / "link"
    file.write_text("x")
    try:
        os.link(file, link)
    except OSError as error:
        return Check.failed(
            name, f"refused ({error.strerror}); stores are locked by links", _ELSEWHERE
        )
    try:
        os.link(file, link)
    except FileExistsError:
        pass
    else:
        return Check.failed(
            name, "an existing name was linked a second time: two jobs could own a run", _ELSEWHERE
        )
    if file.stat().st_nlink != 2:
        return Check.warning(
            name,
            "works, but links are not counted",
            "Do not trust the bytes that `python -m millrace.runs clean` says it frees.",
        )
    return Check.ok(name, "made once, refused the second time")


def check_mkdir(scratch: Path) -> Check:
    """A race of layouts is claimed by making a directory: of several at once one may succeed."""
    return _one_winner("exclusive mkdir", scratch / "directory", make_directory)


def check_create(scratch: Path) -> Check:
    """Opening with ``O_CREAT | O_EXCL`` must succeed once."""
    return _one_winner("exclusive create", scratch / "exclusive", _create)


def _one_winner(name: str, path: Path, take: Callable[[Path], bool]) -> Check:
    """Let four threads take a name at once; the checks inside a job do it from several nodes."""
    together = threading.Barrier(4)

    def take_it(_: int) -> bool:
        together.wait()
        return take(path)

    with ThreadPoolExecutor(4) as pool:
        won = sum(pool.map(take_it, range(4)))
    if won != 1:
        return Check.failed(name, f"{won} of 4 got the same name", _ELSEWHERE)
    return Check.ok(name, "one of 4 gets the name")


def make_directory(path: Path) -> bool:
    """Take a name by making a directory; False: somebody else has it."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _create(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def check_flock(scratch: Path) -> Check:
    """`flock` is a help to the lock of a store, which holds without it."""
    name = "flock"
    with (scratch / "locked").open("w") as first, (scratch / "locked").open() as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Check.warning(
                name,
                f"not available ({error.strerror}); the lock of a store holds without it",
                "Pass --nolock to Snakemake only if it complains about locks, and start it once.",
            )
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return Check.ok(name, "locks out a second opening on this machine")
    return Check.warning(
        name,
        "locks nobody out; the lock of a store holds without it",
        "Do not rely on flock in scripts of your own here.",
    )


def check_sync(scratch: Path) -> Check:
    """Files and directories must be brought to the disk, and in reasonable time."""
    name = "fsync"
    file = scratch / "synced"
    started = time.monotonic()
    with file.open("wb") as opened:
        opened.write(bytes(1 << 20))
    sync(file)
    sync(scratch)
    seconds = time.monotonic() - started
    if seconds > _SLOW_SYNC_S:
        return Check.warning(
            name,
            f"{seconds:.1f} s for 1 MB and its directory",
            "Save less often (`save_every`), or put the project on a faster file system.",
        )
    return Check.ok(name, f"{1e3 * seconds:.0f} ms for 1 MB and its directory")


def check_times(scratch: Path) -> Check:
    """Clock of the file server against that of this machine: locks and Snakemake compare times."""
    name = "file times"
    before = time.time()
    file = scratch / "timed"
    file.write_text("x")
    os.utime(file)
    skew = _distance(file.stat().st_mtime, before, time.time())
    if abs(skew) > _LARGEST_SKEW_S:
        return Check.failed(
            name,
            f"the file server's clock is {skew:+.1f} s from this machine's",
            "Ask the cluster's support to set the clock: outputs would look older than their inputs.",
        )
    return Check.ok(name, f"{abs(skew):.1f} s from this machine's clock")


def _distance(value: float, low: float, high: float) -> float:
    """How far a value lies outside of an interval, with sign; times of files may be in whole seconds."""
    return min(0.0, value + 1.0 - low) if value < low else max(0.0, value - high)


def check_space(directory: Path, need_gb: float, why: str) -> Check:
    """Free space and free inodes of the file system."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize / _GB
    said = f"{free:,.1f} GB free, {need_gb:,.1f} GB wanted ({why})"
    if free < need_gb:
        return Check.failed(
            "free space",
            said,
            "Make room, or say what you need with --need-gb if the estimate is wrong.",
        )
    if status.f_files and status.f_favail < 10_000:
        return Check.warning(
            "free space",
            f"{said}, but only {status.f_favail} more files are possible",
            "Remove files that are not needed, caches and old environments say.",
        )
    return Check.ok("free space", said)


def check_quota(directory: Path, need_gb: float) -> Check:
    """What the quota leaves, where `lfs quota` or `quota` can tell."""
    name = "quota"
    at, kind = mount(directory)
    left = lustre_left(at) if "lustre" in kind else unix_left(at)
    if left is None:
        return Check.skipped(
            name,
            "neither `lfs quota` nor `quota` tells; see the cluster's own command, `myquota` say",
        )
    if left == float("inf"):
        return Check.ok(name, "no limit")
    said = f"{left:,.1f} GB left, {need_gb:,.1f} GB wanted"
    if left < need_gb:
        return Check.failed(
            name,
            said,
            "Remove what is not needed (`python -m millrace.runs clean`) or ask for more quota.",
        )
    return Check.ok(name, said)


def lustre_left(at: str) -> float | None:
    """GB that ``lfs quota`` leaves to the user; infinity without limit, None: it does not tell."""
    answer = ask("lfs", "quota", "-q", "-u", getpass.getuser(), at)
    # "/scratch 1234* 0 20000 - 17 0 0 -" in kB; a star marks an exceeded limit.
    words = answer.out.split()
    return _left(words[1:4]) if answer.code == 0 else None


def unix_left(at: str) -> float | None:
    """GB that ``quota`` leaves to the user on a mount point; None: it does not tell."""
    answer = ask("quota", "-w", "-u", "-p", "--show-mntpoint")
    for line in answer.out.splitlines():
        words = line.split()
        if at in words[:2]:
            return _left(words[words.index(at) + 1 :])
    return None


def _left(words: Iterable[str]) -> float | None:
    """From used, soft and hard limit in kB."""
    try:
        used, soft, hard = (int(word.rstrip("*")) for word in list(words)[:3])
    except ValueError:
        return None
    limits = [limit for limit in (soft, hard) if limit > 0]
    return (min(limits) - used) * 1024 / _GB if limits else float("inf")
