"""Snakemake is killed on this machine: its jobs end, and the same command continues."""

import subprocess
import time

import psutil
import pytest
from pausing import Gate, is_rank, slowed
from tiers import slow_for

RUN = "tiny/n1_gpu1/seed0"


@pytest.mark.slow
def test_jobs_of_a_killed_snakemake_save_and_stop_and_the_same_command_continues(project):
    train = {"epochs": 60, "milestone_every": 60}
    project.config["experiments"]["tiny"]["train"] |= train
    target = "results/train/tiny/n1_gpu1/seed0/epoch_60.ckpt"
    running = subprocess.Popen(
        project.command(target),
        cwd=project.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=project.environment(),
        start_new_session=True,
    )
    head, end = psutil.Process(running.pid), time.monotonic() + 180

    def epochs():
        return project.epochs("tiny/n1_gpu1/seed0")

    def ranks():
        jobs = head.children(recursive=True) if running.poll() is None else []
        return [one for one in jobs if is_rank(one)]

    with slowed(epochs, ranks):
        while epochs() < 8:  # the project has a run of four epochs already
            assert running.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        jobs = head.children(recursive=True)
        running.kill()
        running.wait()
        _, alive = psutil.wait_procs(jobs, timeout=300)
    assert alive == []
    done = epochs()
    assert 8 <= done < 60
    project.run("--unlock")
    project.run(target)
    log = project.path("logs/train_segment/tiny/n1_gpu1/seed0/epoch_60.log").read_text()
    assert "continues from step_" in log
    assert f"(epoch {done} of 60)" in log, "nothing was lost but the epoch that was not done"


@pytest.mark.parametrize(
    ("rule", "module", "log", "target"),
    slow_for(
        [
            ("train_segment", "millrace", f"{RUN}/epoch_4", f"results/train/{RUN}/epoch_4.ckpt"),
            ("evaluate_run", "millrace", RUN, f"results/evaluate/{RUN}/metrics.json"),
            ("evaluate_run", "torch", RUN, f"results/evaluate/{RUN}/metrics.json"),
            ("simulate_raw", "millrace", "small", "results/data/small/raw"),
        ],
        lambda case: case[0] != "train_segment",
    ),
)
def test_jobs_that_have_just_begun_end_with_their_snakemake(
    project, tmp_path, rule, module, log, target
):
    gate = Gate(tmp_path / "gate", f".{rule}.py", module)
    running = subprocess.Popen(
        project.command("--force", target),
        cwd=project.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=project.environment() | gate.environment,
    )
    gate.wait()
    jobs = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    running.wait()
    if module == "millrace":  # nothing of ours is there before, and nothing else takes long
        gate.open()
    _, alive = psutil.wait_procs(jobs, timeout=300)
    gate.open()
    assert jobs
    assert alive == []
    said = project.path(f"logs/{rule}/{log}.log").read_text()
    assert said == "Snakemake was killed: this job stops\n"
    assert not project.path(target).exists()
