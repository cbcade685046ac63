"""Small trainings in jobs of SLURM, and their processes."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from lab import ACCOUNT
from pausing import is_rank

from millrace.schedulers import State
from millrace.training.request import Request

LAUNCH = """
import json, os, sys
from millrace.launch.launcher import launch
from millrace.training.request import Request
cpus = int(os.environ["SLURM_CPUS_PER_TASK"])
sys.exit(launch(Request(**json.loads(open(sys.argv[1]).read())), cpus))
"""
GPU_NODES = {"slurm_account": ACCOUNT, "slurm_partition": "a100-80gb", "mem_mb": 1000}


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

    def submit(self, request, nodes=1, gpus=2, minutes=10, name="train", cpus=2):
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
            "cpus_per_task": cpus,
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

    def wait_for_epoch(self, request, epoch, seconds=900):
        wait(seconds, lambda: max(self.epochs(request), default=0) >= epoch, f"epoch {epoch}")

    def wait_for_end(self, request, job, seconds=900):
        wait(seconds, lambda: self.jobs.jobs([job])[job].state.is_over, f"the end of {job}")
        state = self.jobs.jobs([job])[job].state
        assert state is State.DONE, self.log(request)[-3000:]


def wait(seconds, ready, what):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def workers():
    """Processes of trainings in jobs."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "millrace.launch.train" in words or "millrace.launch.agent" in words:
            found.append(process)
    return [p for p in found if "SLURM_JOB_ID" in _environment(p)]


def trainers():
    """Ranks in jobs."""
    return [p for p in workers() if is_rank(p)]


def _environment(process):
    try:
        return process.environ()
    except psutil.Error:
        return {}


def ranks(job):
    """Worker processes of a job, by rank."""
    return {
        int(p.name().split()[1]): p
        for p in trainers()
        if _environment(p).get("SLURM_JOB_ID") == job
    }


def same_state(one, other):
    """Weights and optimiser bit by bit."""
    assert one["step"] == other["step"]
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    states = (one["optimizer"]["state"], other["optimizer"]["state"])
    for index, moments in states[0].items():
        for key, value in moments.items():
            assert torch.equal(value, states[1][index][key]), (index, key)
