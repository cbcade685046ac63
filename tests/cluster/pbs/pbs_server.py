"""The stand-in for PBS as a test sees it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

BIN = Path(__file__).parent / "bin"
PATIENCE = 240.0
"""Seconds for what takes some on an idle machine: Snakemake alone may take half a minute to start beside
other tests."""
# On a machine with other work, two threads wait for each other more than they compute.
KATANA = (
    *("--profile", "profiles/katana", "--seconds-between-status-checks", "1"),
    *("--set-threads", "train_segment=1"),
)
sys.path.insert(0, str(BIN))

import pbs_standin  # noqa: E402


class Pbs:
    """The stand-in's server: settings, jobs, and its hands on their throats."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def set(self, **values) -> None:
        """Change `pbs_standin.SETTINGS`."""
        pbs_standin.change(**values)

    def jobs(self) -> dict[str, dict]:
        return {f"{job['number']}.{pbs_standin.SERVER}": job for job in pbs_standin.jobs()}

    def job(self, id: str) -> dict:
        return self.jobs()[id]

    def wait(self, id: str, *states: str, timeout: float = PATIENCE) -> dict:
        """Wait until a job is in one of the states; without any: until it has ended."""
        return wait_for(
            lambda: (job := self.job(id))["state"] in (states or ("F",)) and job,
            f"job {id} is not in {states or 'F'}",
            timeout,
        )

    def lose(self, id: str) -> None:
        """Have the server forget a job, and its node switched off."""
        number = int(id.split(".")[0])
        mom = self.job(id).get("mom")
        if mom and alive(mom):
            (self.root / "jobs" / f"{number}.vanish").touch()
            wait_for(lambda: not alive(mom), "the job does not vanish")
        (self.root / "jobs" / f"{number}.json").unlink(missing_ok=True)

    def processes(self) -> list[int]:
        """Everything that was started by a job or its MoM, by its environment."""
        found = []
        mark = f"PBS_STANDIN={self.root}".encode()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                pid = int(environ.parent.name)
                if pid != os.getpid() and mark in environ.read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def stop(self) -> list[int]:
        """End all jobs; returns what was still there long after."""
        self.set(hold=True)
        live = [id for id, job in self.jobs().items() if job["state"] != "F"]
        moms = [job["mom"] for job in self.jobs().values() if "mom" in job]
        self.set(kill_delay_s=0.5)
        if live:
            subprocess.run([BIN / "qdel", *live], check=False, capture_output=True)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not any(map(alive, moms)), "")
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not self.processes(), "")
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left


def alive(pid: int) -> bool:
    return pid in pbs_standin.sessions()


def wait_for(condition, complaint: str, timeout: float = PATIENCE):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(complaint)


def is_asking(process):
    """Whether Snakemake is running the status command."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "millrace.schedulers.pbs status" in " ".join(child.cmdline()):
                return True
    return False


@contextlib.contextmanager
def running_pbs(root: Path, patch: pytest.MonkeyPatch) -> Iterator[Pbs]:
    """An empty PBS; complains if a job leaves a process behind."""
    root.mkdir()
    patch.setenv("PBS_STANDIN", str(root))
    patch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith(("MILLRACE_", "PBS_JOB"))]:
        patch.delenv(name)
    server = Pbs(root)
    try:
        yield server
    finally:
        left = server.stop()
    assert not left, f"processes were left behind: {left}"
