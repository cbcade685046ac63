"""One writer at a time: a lock with a fencing token, on file systems where `flock` may have no effect.

The lock is a file made by an atomic hard link. It names host, process and scheduler job of its owner and a
token that grows with every owner (the last one is kept in ``.owner.json.guard``). A lock whose owner is
dead is taken over; an owner that was wrongly taken for dead finds another name in the lock at its next
commit and stops.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

from millrace.errors import ExitCode, UserError

# An owner on another host cannot be examined; it is taken for dead when it has not touched its lock for
# this long. Owners touch it far more often.
STALE_AFTER_S = 900.0
TOUCH_EVERY_S = STALE_AFTER_S / 15


class LockedError(UserError):
    """Another process writes to the store."""

    exit_code = ExitCode.LOCKED


@dataclass(frozen=True)
class OwnerRecord:
    """Content of the lock file."""

    host: str
    pid: int
    started: float
    """Seconds from the start of the host to that of the process, because process ids are reused and the
    time of day changes when the clock is set."""
    job: str
    token: int
    nonce: str
    run: float | None = None
    """Larger each time that the scheduler starts the job again; None: it does not tell."""

    def is_alive(self, lock: Path, now: float) -> bool:
        """Whether the process runs; ``now`` is the time on the clock of the lock's file system."""
        same_job, run = bool(self.job) and self.job == current_job(), _current_run()
        if same_job and self.run is not None and run is not None and self.run != run:
            # The job was requeued, and the node that was given up lives on: the later start counts.
            return self.run > run
        if self.host != socket.gethostname():
            if same_job:
                return False  # its ranks were started again, the first of them on another node
            with contextlib.suppress(FileNotFoundError):
                return now - lock.stat().st_mtime < STALE_AFTER_S
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(_started(process) - self.started) < 1e-3
            return same and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, TypeError, ValueError):  # dead, or no process id at all
            return False

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


class Owner:
    """Holder of the lock of a directory, see `claim`."""

    def __init__(self, path: Path, record: OwnerRecord) -> None:
        self._path, self._record = path, record
        self.token = record.token
        """Fencing token, which grows with every owner."""

    @classmethod
    @contextlib.contextmanager
    def claim(cls, path: Path) -> Iterator["Owner"]:
        """Hold the lock ``path`` while the context is open; raises `LockedError` that names its owner."""
        with _guard(path) as guard:
            holder = read_owner(path)
            if holder is not None and holder.is_alive(path, os.fstat(guard.fileno()).st_mtime):
                raise LockedError(
                    f"{path.parent}: in use by {holder}; wait for it or stop it, and delete "
                    f"{path} only if it is surely gone"
                )
            path.unlink(missing_ok=True)
            guard.seek(0)
            last = guard.read()
            token = max(int(last) if last.isdigit() else 0, holder.token if holder else 0) + 1
            guard.truncate(0)
            guard.write(b"%d" % token)
            guard.flush()
            record = OwnerRecord(
                host=socket.gethostname(),
                pid=os.getpid(),
                started=_started(psutil.Process()),
                job=current_job(),
                token=token,
                nonce=uuid.uuid4().hex,
                run=_current_run(),
            )
            owner = cls(path, record)
            owner._link()
        released = threading.Event()
        threading.Thread(target=owner._touch, args=[released], daemon=True).start()
        try:
            yield owner
        finally:
            released.set()
            # An error here, such as a read-only file system, must not hide the one that ended the writing.
            with contextlib.suppress(OSError):
                if read_owner(path) == record:
                    path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `LockedError` if the lock was taken over, else mark it as in use."""
        holder = read_owner(self._path)
        if holder != self._record:
            raise LockedError(
                f"{self._path.parent}: this run now belongs to {holder or 'nobody'}; this process "
                "stops without writing"
            )
        os.utime(self._path)

    def _touch(self, released: threading.Event) -> None:
        while not released.wait(TOUCH_EVERY_S):
            with contextlib.suppress(OSError, LockedError):  # the next commit reports it
                self.check()

    def _link(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{self._record.nonce}")
        try:
            temporary.write_text(json.dumps(asdict(self._record)))
            os.link(temporary, self._path)
        except FileExistsError:
            raise LockedError(
                f"{self._path.parent}: another process took this run at the same moment"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)


def _started(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


def current_job() -> str:
    """Id of the scheduler job of this process; empty: there is none."""
    return os.environ.get("PBS_JOBID") or os.environ.get("SLURM_JOB_ID") or ""


def _current_run() -> float | None:
    # The scripts of `millrace.schedulers.pbs` set the first; SLURM sets the other for jobs started again.
    if os.environ.get("PBS_JOBID"):
        value = os.environ.get("MILLRACE_PBS_STARTED")
    else:
        value = os.environ.get("SLURM_RESTART_COUNT", "0")
    try:
        return float(value) if value else None
    except ValueError:
        return None


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[IO[bytes]]:
    """Let one process at a time examine and replace the lock; yields the file with the last token."""
    with path.with_name(f".{path.name}.guard").open("a+b") as file:
        # Without a working flock the atomic link and the check at every commit still protect the store.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(file.fileno())
        yield file


def read_owner(path: Path) -> OwnerRecord | None:
    """Read who holds the lock ``path``, dead or alive; None: nobody."""
    # The link makes a complete file appear: one that cannot be read is damaged and belongs to nobody.
    try:
        return OwnerRecord(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
