"""One SLURM for all tests of this folder, and a way to train a small model in it."""

import getpass
import threading
import time

import psutil
import pytest
from lab import SlurmLab, reason_to_skip
from slurm_jobs import Training, wait, workers

from millrace.schedulers import queue


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A SLURM that runs; what is left of it afterwards is an error."""
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    lab = SlurmLab(tmp_path_factory.mktemp("slurm"))
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()
    assert not _ours(lab.directory), "processes of SLURM are left"


def _hasten(lab, over):
    """Start jobs soon that SLURM holds back for two minutes after they were put back.

    Not at once: a credential of the same second as the end of the job is taken for a revoked one.
    """
    seen = {}
    while not over.wait(0.5):
        held = lab.run("squeue", "-h", "-t", "PD", "-o", "%i %r").stdout.splitlines()
        waiting = {line.split()[0] for line in held if line.endswith("BeginTime")}
        seen = {job: seen.get(job, time.monotonic()) for job in waiting}
        for job in [job for job, since in seen.items() if time.monotonic() - since > 3]:
            lab.run("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.fixture
def jobs(slurm):
    """The queue; after each test it is empty, and soon no process of a job is left."""
    # Not longer: a child has the files that are open when it starts, and for a moment their locks.
    over = threading.Event()
    hastening = threading.Thread(target=_hasten, args=(slurm, over))
    hastening.start()
    yield queue("slurm")
    over.set()
    hastening.join()
    slurm.run("scancel", "--user", getpass.getuser())
    wait(600, lambda: not slurm.run("squeue", "-h").stdout, "the end of all jobs")
    wait(600, lambda: not workers(), "the end of all workers")


@pytest.fixture
def training(tmp_path, samples, definition, jobs, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return Training(tmp_path, samples, definition, jobs)


def _ours(directory):
    names = ("slurmctld", "slurmd", "slurmdbd", "slurmstepd", "munged", "mariadbd")
    return [
        p
        for p in psutil.process_iter(["name", "cmdline"])
        if p.info["name"] in names and str(directory) in " ".join(p.info["cmdline"] or [])
    ]
