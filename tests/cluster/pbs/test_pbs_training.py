"""The real workflow through PBS: jobs killed, chained, left behind by Snakemake; nothing is lost."""

import contextlib
import json
import os
import shutil
import signal
import subprocess

import psutil
import pytest
import torch
from images import Image, with_apptainer
from pausing import is_rank, slowed
from pbs_server import PATIENCE, is_asking, running_pbs, wait_for
from project import FOLDER

EPOCHS = 60
NAME = f"tiny/n1_gpu1/seed5/epoch_{EPOCHS}"
TARGET = f"results/train/{NAME}.ckpt"

pytestmark = pytest.mark.slow


def long(project):
    """A project whose training takes long enough to be disturbed."""
    project.config["experiments"]["tiny"]["train"] |= {
        "epochs": EPOCHS,
        "milestone_every": EPOCHS,
        "save_every": 5,
    }
    project.config["run"]["seeds"] = [5]
    return project


@pytest.fixture(scope="module")
def whole(finished_on_pbs, tmp_path_factory):
    """The checkpoint of a training that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    project = long(finished_on_pbs.copy(root / FOLDER))
    with pytest.MonkeyPatch.context() as patch, running_pbs(root / "pbs", patch):
        project.run("--", TARGET)
    checkpoint = torch.load(project.path(TARGET), weights_only=True)
    assert len(checkpoint["sessions"]) == 1
    return checkpoint


def start(project):
    return subprocess.Popen(
        project.command("--", TARGET),
        cwd=project.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=project.environment(),
    )


def finish(process):
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said[-5000:]
    return said


def epochs(project):
    return sum(
        len(file.read_text().splitlines())
        for file in project.path("runs/tiny/n1_gpu1/seed5").glob("*/metrics.jsonl")
    )


def paused(pbs, project, seconds=0.4):
    def trainers():
        return [p for p in jobs_processes(pbs) if is_rank(p)]

    return slowed(lambda: epochs(project), trainers, seconds)


def jobs_processes(pbs):
    found = []
    for pid in pbs.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def runs(process, *words):
    """Whether these are in the command line of a process."""
    with contextlib.suppress(psutil.Error):
        return " ".join(words) in " ".join(process.cmdline())
    return False


def wait_for_epochs(project, process, n):
    def enough_or_over():
        return epochs(project) >= n or process.poll() is not None

    wait_for(enough_or_over, f"no {n} epochs")
    assert process.poll() is None, process.communicate()[0][-5000:]


def assert_same(checkpoint, whole, sessions):
    """Bit by bit the weights and the optimiser of the training that nothing disturbed."""
    mine = torch.load(checkpoint, weights_only=True)
    assert len(mine["sessions"]) == sessions
    assert mine["model"].keys() == whole["model"].keys()
    assert all(torch.equal(mine["model"][name], whole["model"][name]) for name in mine["model"])
    for index, state in mine["optimizer"]["state"].items():
        other = whole["optimizer"]["state"][index]
        assert all(torch.equal(state[name], other[name]) for name in state)


def test_whole_workflow(finished_on_pbs, project):
    metrics = json.loads(
        project.path("results/evaluate/tiny/n1_gpu1/seed0/metrics.json").read_text()
    )
    assert metrics["test"]["head"]["rmse"] > 0
    receipt = json.loads(project.path("results/train/tiny/n1_gpu1/seed0/epoch_4.json").read_text())
    jobs = [session["job"] for session in receipt["sessions"]]
    assert all(job.endswith(".pbs") for job in jobs), "training ran outside of PBS"
    assert project.planned() == {}
    assert "table of test skill" in project.report()


@pytest.mark.nightly  # the script of a rule runs in one more often
def test_jobs_run_in_an_image_and_train_the_same_bits(pbs, project, monkeypatch):
    """By the stand-in of Apptainer; the programs of PBS are not inside."""
    monkeypatch.setenv("PATH", with_apptainer(os.environ["PATH"]))
    image = Image(project.path("millrace.sif"))
    project.config["container"] = "millrace.sif"
    with project.path("profiles/katana/config.yaml").open("a") as profile:
        profile.write("software-deployment-method: apptainer\napptainer-args: --nv\n")
    name = "results/train/tiny/n1_gpu1/seed0/epoch_4.ckpt"
    before = torch.load(project.path(name), weights_only=True)
    target = "results/evaluate/tiny/n1_gpu1/seed0/metrics.json"
    shutil.rmtree(project.path("runs"))  # the second segment starts from the file of the first
    for file in (name, target):
        project.path(file).unlink()
    project.run("--rerun-triggers", "mtime", "params", "input", "--", target)
    training, scoring = image.calls
    assert {"millrace.launch.agent", "millrace.launch.train"} <= {*training["command"]}
    assert "evaluate_run.py" in scoring["command"][-1]
    for call in (training, scoring):
        assert call["options"]["flags"] == ["--nv"]
        assert call["directory"] == str(project.root)
    assert not {".cache", ".config"} & {path.name for path in project.root.iterdir()}
    assert_same(project.path(name), before, sessions=2)


def test_job_killed_early_continues_in_a_retry(pbs, project, whole):
    """The walltime ends before the deadline that the job was told."""
    process = start(long(project))
    with paused(pbs, project):
        wait_for_epochs(project, process, 7)
        pbs.set(killed_at=0.0, kill_delay_s=1)
        pbs.wait("1.pbs")
    pbs.set(killed_at=1.0)
    assert epochs(project) < EPOCHS, "killed too late to prove anything"
    said = finish(process)
    assert "PBS job 1.pbs: killed at the end of its walltime" in said
    assert list(pbs.jobs()) == ["1.pbs", "2.pbs"]
    assert_same(project.path(TARGET), whole, sessions=2)


def test_chain_of_short_jobs_needs_no_retries(pbs, project, whole):
    """The first job stops for its deadline, the second for a signal (qsig), the third finishes."""
    # 30 s: less than what a job keeps for saving and ending, so that it stops at once. It is not killed
    # after 30 s: on a slow machine that can be over before training has begun.
    pbs.set(walltime_scale=30 / (12 * 3600), killed_at=10.0)
    long(project).options = (*project.options, "--retries", "0")
    process = start(project)
    wait_for(lambda: "2.pbs" in pbs.jobs() or process.poll() is not None, "no second job")
    pbs.set(walltime_scale=1.0, killed_at=1.0)
    with paused(pbs, project):
        wait_for_epochs(project, process, 7)
        launcher = next(p for p in jobs_processes(pbs) if runs(p, "train_segment.py"))
        launcher.send_signal(signal.SIGUSR2)
        pbs.wait("2.pbs")
    said = finish(process)
    assert "PBS job 1.pbs continues as 2.pbs" in said
    assert "PBS job 2.pbs continues as 3.pbs" in said
    assert list(pbs.jobs()) == ["1.pbs", "2.pbs", "3.pbs"]
    assert_same(project.path(TARGET), whole, sessions=3)


@pytest.mark.nightly  # on SLURM, and of a job that only waits, more often
def test_snakemake_killed_while_a_job_trains(pbs, project, whole):
    """The same command follows the job that is there: two would write to one run."""
    process = start(long(project))
    with paused(pbs, project, seconds=1.5):
        wait_for_epochs(project, process, 3)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        locked = start(project)
        assert "--unlock" in locked.communicate(timeout=PATIENCE)[0]
        project.run("--unlock")
        process = start(project)
        wait_for(lambda: is_asking(process), "the job was not taken over")
        assert pbs.job("1.pbs")["state"] == "R", "over too early to prove anything"
    said = finish(process)
    assert "PBS job 1.pbs already exists for the same files; continuing with it" in said
    assert list(pbs.jobs()) == ["1.pbs"]
    assert_same(project.path(TARGET), whole, sessions=1)
