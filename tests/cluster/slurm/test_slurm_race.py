"""Races of layouts in a real SLURM: one winner each, no job left, whatever starts when."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from lab import ACCOUNT
from slurm_jobs import GPU_NODES, wait
from tiers import nightly_for

from millrace.files import write_json
from millrace.launch.first_to_start import Entrant, Race

pytestmark = pytest.mark.slow

HEAD = """
import sys
from pathlib import Path
from millrace.launch.first_to_start import Race, run_race
sys.exit(run_race(Race.read(Path(sys.argv[1])), poll_s=0.5))
"""
LEVANTE = {**GPU_NODES, "slurm_partition": "gpu"}


@pytest.fixture
def start(training):
    """Start the head of a race in the background: (name, epochs) -> (race, process)."""
    running = []

    def begin(name, epochs=1):
        request = training.request("n1_gpu1-or-n1_gpu2", epochs, name)
        entrants = [
            Entrant("n1_gpu1", 1, LEVANTE | asked(1)),
            Entrant("n1_gpu2", 2, GPU_NODES | asked(2)),
        ]
        race = Race(request, "slurm", entrants)
        plan = training.directory / f"plan_{name}"
        plan.mkdir(exist_ok=True)
        write_json(plan / "race.json", asdict(race))
        head = subprocess.Popen(
            [sys.executable, "-c", HEAD, str(plan)], stdout=subprocess.PIPE, text=True
        )
        running.append(head)
        return race, head

    yield begin
    for head in running:
        if head.poll() is None:
            head.kill()
        head.wait()


def asked(gpus):
    return {"nodes": 1, "gres": f"gpu:{gpus}", "cpus_per_task": gpus, "runtime": 5}


def test_simultaneous_starts(start, slurm):
    """Five races, all jobs may start at once."""
    assert_one_winner([start(f"race{n}") for n in range(5)], slurm, {"n1_gpu1", "n1_gpu2"})


@pytest.mark.parametrize(
    ("busy", "wins"),
    nightly_for([("gpu", "n1_gpu2"), ("a100-80gb", "n1_gpu1")], lambda case: case[0] == "gpu"),
)
def test_one_partition_is_full(start, slurm, busy, wins):
    """Three races each in which one of the two has to wait, and is removed while it does."""
    nodes = {"gpu": 1, "a100-80gb": 4}[busy]
    full = slurm.run(
        *("sbatch", "--parsable", "-A", ACCOUNT, "-p", busy, f"--nodes={nodes}"),
        *("--exclusive", "--mem=100", "-t", "10", "-o", "/dev/null", "--wrap", "sleep 600"),
    ).stdout.strip()
    wait(
        600, lambda: full in slurm.run("squeue", "-h", "-t", "R", "-o", "%i").stdout, "the blocker"
    )
    assert_one_winner([start(f"race{n}") for n in range(3)], slurm, {wins}, others={full})


def assert_one_winner(started, slurm, layouts, others=frozenset()):
    for race, head in started:
        output, _ = head.communicate(timeout=300)
        assert head.returncode == 0, output
        receipt = json.loads(Path(race.request.receipt).read_text())
        [session] = receipt["sessions"]
        assert receipt["layout"] == "n1_gpu1-or-n1_gpu2"
        assert session["layout"] in layouts
        assert f"{session['layout']} won" in output
        assert torch.load(race.request.checkpoint, weights_only=True)["step"] > 0
        assert not race.directory.exists()
        submitted = set(re.findall(r"job (\d+)", output))
        left = set(slurm.run("squeue", "-h", "-o", "%i").stdout.split())
        assert len(submitted) == 2, output
        assert not (submitted & left) - others
        ran = [job for job in submitted if ended(slurm, job) == "COMPLETED"]
        assert session["job"] in ran


def ended(slurm, job):
    lines = slurm.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").stdout.split()
    return lines[0] if lines else ""


def test_killed_head_finds_its_jobs_again(start, training, slurm):
    race, head = start("race", epochs=60)
    training.wait_for_epoch(race.request, 3)
    head.kill()
    head.wait()
    _, again = start("race", epochs=60)
    output, _ = again.communicate(timeout=900)
    assert again.returncode == 0
    assert "continues to wait for" in output
    assert "submitted" not in output
    assert training.epochs(race.request) == list(range(1, 61))


def test_interrupted_head_cancels_its_jobs(start, training, slurm):
    race, head = start("race", epochs=2000)
    training.wait_for_epoch(race.request, 3)
    head.terminate()
    head.communicate(timeout=900)
    assert head.returncode != 0
    wait(600, lambda: not slurm.run("squeue", "-h").stdout, "the end of all jobs")
    assert not Path(race.request.checkpoint).exists()
    assert any(Path(race.request.runs).glob("*/step_*")), "nothing was saved"


def test_cancelled_winner_ends_the_race(start, training, slurm):
    race, head = start("race", epochs=2000)
    training.wait_for_epoch(race.request, 3)
    [winner] = slurm.run("squeue", "-h", "-t", "R", "-o", "%i").stdout.split()
    slurm.run("scancel", winner)
    output, _ = head.communicate(timeout=900)
    assert head.returncode not in (0, None), output
    assert output.count("submitted") == 1
    assert not slurm.run("squeue", "-h").stdout
