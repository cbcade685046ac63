"""One writer at a time: a lock with a fencing token, on file systems where `flock` may mean nothing.

The lock is a file made by an atomic hard link. It names host, process and scheduler job of its owner
and a token that grows with every owner (the last one is kept in ``.owner.json.guard``). A lock whose
owner is gone is taken over; an owner that was taken for gone finds another name in the lock at its
next commit and stops.
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

# An owner on another host cannot be looked at; it is taken for gone when it has not touched its lock
# for this long. Owners touch it far more often.
STALE_AFTER_S = 900.0
_TOUCH_EVERY_S = STALE_AFTER_S / 15


class LockedError(UserError):
    """Somebody else writes to the store."""

    exit_code = ExitCode.LOCKED


@dataclass(frozen=True)
class Record:
    """Content of the lock file."""

    host: str
    pid: int
    started: float
    """Seconds from the start of the host to that of the process: a process id alone is used again,
    and a time of day changes when the clock is set."""
    job: str
    token: int
    nonce: str

    def is_alive(self, lock: Path, now: float) -> bool:
        """Whether the process runs; ``now`` is the time on the clock of the lock's file system."""
        if self.host != socket.gethostname():
            if self.job and self.job == _current_job():
                return False  # its ranks were started again, the first of them on another node
            with contextlib.suppress(FileNotFoundError):
                return now - lock.stat().st_mtime < STALE_AFTER_S
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(_started(process) - self.started) < 1e-3
            return same and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, TypeError, ValueError):  # gone, or no process id at all
            return False

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


class Owner:
    """Holder of the lock of a directory, see `claim`."""

    def __init__(self, path: Path, record: Record) -> None:
        self._path, self._record = path, record

    @property
    def token(self) -> int:
        """Fencing token: grows with every owner."""
        return self._record.token

    @classmethod
    @contextlib.contextmanager
    def claim(cls, path: Path) -> Iterator["Owner"]:
        """Take the lock ``path``, or raise `LockedError` that names its owner."""
        with _guard(path) as guard:
            holder = read_owner(path)
            if holder is not None and holder.is_alive(path, os.fstat(guard.fileno()).st_mtime):
                raise LockedError(
                    f"{path.parent}: in use by {holder}; wait for it or stop it, and delete "
                    f"{path} only if it is surely gone"
                )
            path.unlink(missing_ok=True)
            token = max(_last_token(guard), holder.token if holder else 0) + 1
            _write_token(guard, token)
            owner = cls(path, _this_process(token))
            owner._link()
        released = threading.Event()
        threading.Thread(target=owner._touch, args=[released], daemon=True).start()
        try:
            yield owner
        finally:
            released.set()
            # What ended the writing, a file system that is read-only now say, is what has to be told.
            with contextlib.suppress(OSError):
                if read_owner(path) == owner._record:
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
        while not released.wait(_TOUCH_EVERY_S):
            with contextlib.suppress(OSError, LockedError):  # the next commit says it
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


def _this_process(token: int) -> Record:
    return Record(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_started(psutil.Process()),
        job=_current_job(),
        token=token,
        nonce=uuid.uuid4().hex,
    )


def _current_job() -> str:
    return os.environ.get("PBS_JOBID") or os.environ.get("SLURM_JOB_ID") or ""


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[IO[bytes]]:
    """Let one process at a time look at the lock and replace it; gives the file with the last token."""
    with path.with_name(f".{path.name}.guard").open("a+b") as file:
        # Without working flock the atomic link and the check at every commit still hold.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(file.fileno())
        yield file


def _last_token(guard: IO[bytes]) -> int:
    guard.seek(0)
    last = guard.read()
    return int(last) if last.isdigit() else 0


def _write_token(guard: IO[bytes], token: int) -> None:
    guard.truncate(0)
    guard.write(b"%d" % token)
    guard.flush()


def read_owner(path: Path) -> Record | None:
    """Who holds the lock ``path``, dead or alive; None: nobody."""
    # The link makes the file appear whole: one that cannot be read is damaged and nobody's.
    try:
        return Record(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
