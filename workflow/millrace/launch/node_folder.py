"""Folders of a job on a disk of its node, which go with the job, however it ends."""

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Of this node alone: locks of a folder that nodes share need not hold between them.
_PREFIX = f"millrace_samples_{os.getuid()}_{socket.gethostname()}_"
_LOCK = ".lock"


@contextlib.contextmanager
def node_folder() -> Iterator[Path]:
    """A new folder in ``$TMPDIR``, which is locked as long as this process lives and removed at the end."""
    place = Path(tempfile.gettempdir())
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


def sweep() -> None:
    """Remove folders whose job is dead."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*{_LOCK}"):
        with contextlib.suppress(OSError), path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()
