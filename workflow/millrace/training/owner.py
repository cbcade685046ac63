"""One writer at a time: a lock with a fencing token, on file systems where `flock` may mean nothing.

The lock is a file made by an atomic hard link. It names host, process and scheduler job of its owner
and a token that grows with every change of owner. A lock whose owner is gone is taken over; an owner
that was taken for gone finds another name in the lock at its next commit and stops.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from millrace.errors import ExitCode, UserError

# An owner on another host cannot be looked at; it is taken for gone when it has not touched its lock
# for this long. Owners touch it at every commit and every progress report.
STALE_AFTER_S = 900.0


class LockedError(UserError):
    """Somebody else writes to the store."""

    exit_code = ExitCode.LOCKED


@dataclass(frozen=True)
class _Record:
    """Content of the lock file."""

    host: str
    pid: int
    started: float
    """Creation time of the process: a process id alone is used again."""
    job: str
    token: int
    nonce: str

    def is_alive(self, lock: Path) -> bool:
        if self.host != socket.gethostname():
            with contextlib.suppress(FileNotFoundError):
                return time.time() - lock.stat().st_mtime < STALE_AFTER_S
            return False
        try:
            process = psutil.Process(self.pid)
            same = process.create_time() == self.started
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


class Owner:
    """Holder of the lock of a directory, see `claim`."""

    def __init__(self, path: Path, record: _Record) -> None:
        self._path, self._record = path, record

    @property
    def token(self) -> int:
        """How many owners there have been, this one included."""
        return self._record.token

    @classmethod
    @contextlib.contextmanager
    def claim(cls, path: Path) -> Iterator["Owner"]:
        """Take the lock ``path``, or raise `LockedError` that names its owner."""
        with _guard(path):
            holder = _read(path)
            if holder is not None:
                if holder.is_alive(path):
                    raise LockedError(
                        f"{path.parent}: in use by {holder}; wait for it or stop it, and delete "
                        f"{path} only if it is surely gone"
                    )
                path.unlink(missing_ok=True)
            owner = cls(path, _this_process(token=holder.token + 1 if holder else 1))
            owner._link()
        try:
            yield owner
        finally:
            if _read(path) == owner._record:
                path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `LockedError` if the lock was taken over, else mark it as in use."""
        holder = _read(self._path)
        if holder != self._record:
            raise LockedError(
                f"{self._path.parent}: this run now belongs to {holder or 'nobody'}; this process "
                "stops without writing"
            )
        os.utime(self._path)

    def _link(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{self._record.nonce}")
        temporary.write_text(json.dumps(asdict(self._record)))
        try:
            os.link(temporary, self._path)
        except FileExistsError:
            raise LockedError(
                f"{self._path.parent}: another process took this run at the same moment"
            ) from None
        finally:
            temporary.unlink()


def _this_process(token: int) -> _Record:
    return _Record(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        job=os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID") or "",
        token=token,
        nonce=uuid.uuid4().hex,
    )


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[None]:
    """Let one process at a time look at the lock and replace it."""
    with path.with_name(f".{path.name}.guard").open("w") as file:
        # Without working flock the atomic link and the check at every commit still hold.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> _Record | None:
    # The link makes the file appear whole: one that cannot be read is damaged and nobody's.
    try:
        return _Record(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
