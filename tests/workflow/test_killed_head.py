"""Snakemake is killed on this machine: its jobs end, and the same command continues."""

import subprocess
import time

import psutil
import pytest
from pausing import is_rank, slowed


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
        _, alive = psutil.wait_procs(jobs, timeout=120)
    assert alive == []
    done = epochs()
    assert 8 <= done < 60
    project.run("--unlock")
    project.run(target)
    log = project.path("logs/train_segment/tiny/n1_gpu1/seed0/epoch_60.log").read_text()
    assert "continues from step_" in log
    assert f"(epoch {done} of 60)" in log, "nothing was lost but the epoch that was not done"
