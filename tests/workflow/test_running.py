"""The workflow run for real: outputs, kills, restarts, the report."""

import json
import os
import re
import signal
import subprocess
import time

import psutil
import pytest
import torch

RUN = "tiny/n1_gpu1/seed0"


def test_outputs(project):
    metrics = json.loads(project.path(f"results/evaluate/{RUN}/metrics.json").read_text())
    for split in ("validation", "test"):
        assert set(metrics[split]) == {"head", "mass_concentration"}
        assert metrics[split]["head"]["rmse"] > 0
    assert metrics["epoch"] == 4
    receipt = json.loads(project.path(f"results/train/{RUN}/epoch_4.json").read_text())
    assert [record["epoch"] for record in receipt["history"]] == [1, 2, 3, 4]
    assert {record["session"] for record in receipt["history"]} == {1, 2}
    figures = project.path(f"results/evaluate/{RUN}/figures/head")
    names = {"scatter", "time_series", "error_map", "section", "rollout_error_by_lead"}
    assert {path.stem for path in figures.glob("*.png")} == names
    assert (figures / "animation.gif").is_file()
    table = project.path("results/report/skill.html").read_text()
    assert f"{metrics['test']['head']['skill']:.3g}" in table


def test_report(project):
    text = project.report()
    for expected in (
        "Summary",
        "Evaluation",
        "Training",
        "Data",
        "table of test skill",
        "train_segment",
    ):
        assert expected in text
    assert len(text) > 500_000, "the figures are not inside"


@pytest.mark.slow
def test_deleted_outputs_come_back_without_training(project):
    checkpoint = project.path(f"results/train/{RUN}/epoch_4.ckpt")
    before = checkpoint.read_bytes()
    project.run("train", "--delete-all-output")
    assert not checkpoint.exists()
    project.run("train")
    assert checkpoint.read_bytes() == before
    assert "epoch 1/" not in project.path(f"logs/train_segment/{RUN}/epoch_2.log").read_text()


def test_killed_trainer_continues_bit_by_bit(project):
    """SIGKILL in the middle of a segment, then the same command."""
    project.config["experiments"]["tiny"]["train"] |= {"epochs": 40, "milestone_every": 40}
    project.config["experiments"]["tiny"]["train"]["save_every"] = "1e0"  # for YAML 1.1 a text
    target = "results/train/tiny/n1_gpu1/seed5/epoch_40.ckpt"
    project.config["run"]["seeds"] = [5]
    running = subprocess.Popen(
        project.command("--", target),
        cwd=project.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=project.environment(),
    )
    metrics = wait_for_epochs(project, 8)
    below = psutil.Process(running.pid).children(recursive=True)
    # A rank would be started again.
    agent = next(p for p in below if "millrace.launch.agent" in p.cmdline())
    os.kill(agent.pid, signal.SIGKILL)
    assert running.wait(300) != 0
    done = len(metrics.read_text().splitlines())
    assert 8 <= done < 40, "killed too late to prove anything"

    project.run("--", target)
    log = project.path(target.replace("results/train", "logs/train_segment")[:-4] + "log")
    continued = int(re.search(r"\(epoch (\d+) of 40\)", log.read_text())[1])
    assert continued >= done - 1, "more than one save interval was lost"
    interrupted = torch.load(project.path(target), weights_only=True)

    project.path("runs").rename(project.path("runs_killed"))
    project.path(target).unlink()
    project.run("--", target)
    whole = torch.load(project.path(target), weights_only=True)
    assert len(whole["sessions"]) == 1
    assert len(interrupted["sessions"]) == 2
    assert_equal(interrupted["model"], whole["model"])
    assert_equal(interrupted["optimizer"], whole["optimizer"])


def wait_for_epochs(project, n):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for metrics in project.path("runs/tiny/n1_gpu1/seed5").glob("*/metrics.jsonl"):
            if len(metrics.read_text().splitlines()) >= n:
                return metrics
        time.sleep(0.02)
    raise AssertionError("training did not get going")


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.slow
def test_another_mesh_is_predicted(project):
    demo = {"slices": 3, "nodes_per_slice": 55, "steps": 12, "spin_up": 5.0}
    small = project.config["datasets"]["small"]
    project.config["datasets"]["finer"] = {**small, "demo": demo}
    block = {"experiment": "tiny", "layout": "n1_gpu1", "seed": 0, "source": "finer"}
    project.config["predictions"] = {"finer_mesh": block}
    target = "results/predict/finer_mesh/predictions.nc"
    assert project.planned(target) == {"simulate_raw": 1, "predict": 1}
    project.run("--", target)
    metrics = json.loads(project.path("results/predict/finer_mesh/metrics.json").read_text())
    assert metrics["forecasts"] == 10
    assert metrics["variables"]["head"]["rmse"] > 0
    assert project.planned() == {}
