"""One SLURM for all tests of this folder, and a way to train a small model in it."""

import getpass
import json
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from lab import ACCOUNT, SlurmLab, reason_to_skip

from millrace.schedulers import State, queue
from millrace.training.request import Request

LAUNCH = """
import json, sys
from millrace.launch import launch
from millrace.training.request import Request
sys.exit(launch(Request(**json.loads(open(sys.argv[1]).read())), cpus=2))
"""
GPU_NODES = {"slurm_account": ACCOUNT, "slurm_partition": "a100-80gb", "mem_mb": 1000}


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A SLURM that runs; what is left of it afterwards is an error."""
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    lab = SlurmLab(tmp_path_factory.mktemp("slurm"))
    over = threading.Event()
    try:
        lab.start()
        threading.Thread(target=_hasten, args=(lab, over), daemon=True).start()
        yield lab
    finally:
        over.set()
        lab.stop()
    assert not _ours(lab.directory), "processes of SLURM are left"


def _hasten(lab, over):
    """Start jobs at once that SLURM holds back for two minutes after they were put back."""
    while not over.wait(0.5):
        held = lab.run("squeue", "-h", "-t", "PD", "-o", "%i %r").stdout.splitlines()
        for job in (line.split()[0] for line in held if line.endswith("BeginTime")):
            lab.run("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.fixture
def jobs(slurm):
    """The queue; after each test it is empty, and no process of a job is left five seconds later."""
    yield queue("slurm")
    slurm.run("scancel", "--user", getpass.getuser())
    wait(30, lambda: not slurm.run("squeue", "-h").stdout, "the end of all jobs")
    left = wait(5, lambda: not workers(), "the end of all workers", strict=False)
    assert left, f"left behind: {workers()}"


class Training:
    """A small training in jobs of SLURM."""

    def __init__(self, directory, samples, definition, jobs):
        self.directory, self.jobs = directory, jobs
        self._samples, self._definition = samples, definition

    def request(self, layout="n1_gpu2", epochs=100, name="run", **train):
        return Request(
            experiment="wave",
            layout=layout,
            seed=0,
            target_epoch=epochs,
            definition={
                **self._definition,
                "train": {**self._definition["train"], **train},
            },
            files={role: str(path) for role, path in self._samples.items()},
            runs=str(self.directory / name / "runs"),
            checkpoint=str(self.directory / name / f"epoch_{epochs}.ckpt"),
            receipt=str(self.directory / name / f"epoch_{epochs}.json"),
        )

    def submit(self, request, nodes=1, gpus=2, minutes=10, name="train"):
        """Submit a launcher; returns the job's id."""
        self.directory.joinpath(request.runs).mkdir(parents=True, exist_ok=True)
        file = Path(request.runs).with_name("request.json")
        file.write_text(json.dumps(asdict(request)))
        script = self.directory / "launch.py"
        script.write_text(LAUNCH)
        resources = GPU_NODES | {
            "nodes": nodes,
            "tasks": nodes,
            "mpi": "srun" if nodes > 1 else "",
            "gres": f"gpu:{gpus}",
            "cpus_per_task": 2,
            "runtime": minutes,
            "slurm_extra": "--requeue --open-mode=append",
        }
        return self.jobs.submit(
            [sys.executable, str(script), str(file)],
            resources,
            name,
            str(Path(request.runs).with_name("job_%j.log")),
        )

    def log(self, request):
        return "".join(p.read_text() for p in Path(request.runs).parent.glob("job_*.log"))

    def epochs(self, request):
        """Epochs that were reported so far, each as often as it was computed."""
        files = Path(request.runs).glob("*/metrics.jsonl")
        return [json.loads(line)["epoch"] for f in files for line in f.read_text().splitlines()]

    def wait_for_epoch(self, request, epoch, seconds=60):
        wait(seconds, lambda: max(self.epochs(request), default=0) >= epoch, f"epoch {epoch}")

    def wait_for_end(self, request, job, seconds=120):
        wait(seconds, lambda: self.jobs.jobs([job])[job].state.is_over, f"the end of {job}")
        state = self.jobs.jobs([job])[job].state
        assert state is State.DONE, self.log(request)[-3000:]


@pytest.fixture
def training(tmp_path, samples, definition, jobs, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return Training(tmp_path, samples, definition, jobs)


def wait(seconds, ready, what, strict=True):
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            if strict:
                raise AssertionError(f"waited {seconds} s for {what}")
            return False
        time.sleep(0.1)
    return True


def workers():
    """Processes of trainings in jobs."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "millrace.train" in words or "millrace.agent" in words:
            found.append(process)
    return [p for p in found if "SLURM_JOB_ID" in _environment(p)]


def _environment(process):
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _ours(directory):
    names = ("slurmctld", "slurmd", "slurmdbd", "slurmstepd", "munged", "mariadbd")
    return [
        p
        for p in psutil.process_iter(["name", "cmdline"])
        if p.info["name"] in names and str(directory) in " ".join(p.info["cmdline"] or [])
    ]


def ranks(job):
    """Worker processes of a job, by rank."""
    return {
        int(env["RANK"]): p
        for p in workers()
        if (env := _environment(p)).get("SLURM_JOB_ID") == job and "RANK" in env
    }
