"""Sweeps in the workflow: what is planned, and a real one that is killed."""

import contextlib
import json
import os
import signal
import subprocess
import time

import pandas as pd
import pytest
import yaml

FILES = ["table.csv", "table.html", "chosen.yaml"]


@pytest.fixture
def swept(project):
    """A finished project whose experiment becomes a sweep."""
    project.config["experiments"]["tiny"]["train"] |= {"epochs": 2, "milestone_every": 1}
    rates = {"low": 1e-4, "high": 0.5, "log": True}
    sweep = {"train.learning_rate": rates, "optuna": {"trials": 6, "at_once": 4}}
    project.config["experiments"]["tiny"]["sweep"] = sweep
    return project


def test_a_grid_plans_the_runs_of_all_trials_and_one_evaluation_later(project):
    grid = {"train.learning_rate": ["1e-3", "3e-3"], "model.hidden": [4, 8]}
    project.config["experiments"]["tiny"]["sweep"] = grid
    choosing = {"choose_trial": 1, "summarise_sweep": 1}
    assert project.planned("sweep") == {"train_segment": 8, **choosing}
    assert project.planned() == {"train_segment": 8, **choosing, "summarise_skill": 1}
    target = "results/evaluate/tiny_hidden-8_learning_rate-3e-3/n1_gpu1/seed0/metrics.json"
    assert project.planned(target) == {"train_segment": 2, "evaluate_run": 1}


def test_optuna_plans_its_first_generation(swept):
    known = {"ask_trials": 1, "choose_trial": 1, "summarise_sweep": 1, "summarise_skill": 1}
    done = swept.run("-n")
    assert swept.planned() == known
    assert "sweep of tiny: 6 trials" in done.stdout + done.stderr


def test_a_mistake_in_a_sweep_is_refused_before_any_job(project):
    project.config["experiments"]["tiny"]["sweep"] = {"model.hiden": [3]}
    done = project.run("-n", check=False)
    assert done.returncode != 0
    assert "unknown key 'hiden': did you mean 'hidden'?" in done.stdout + done.stderr


@pytest.mark.nightly
def test_a_trial_that_diverges_does_not_stop_the_sweep(project):
    project.config["experiments"]["tiny"]["train"] |= {"epochs": 2, "milestone_every": 1}
    project.config["experiments"]["tiny"]["sweep"] = {"train.learning_rate": [1e-3, 1e25]}
    project.run("sweep")
    table = pd.read_csv(project.path("results/sweeps/tiny/table.csv"))
    assert [*table["train.learning_rate"]] == [1e-3, 1e25]
    assert table["state"][0] == "chosen"
    assert table["state"][1].startswith("failed: the loss or a gradient became infinite")
    assert project.planned("sweep") == {}


@pytest.mark.nightly  # three sweeps
def test_a_sweep_that_is_killed_twice_chooses_what_an_undisturbed_one_does(swept, tmp_path):
    undisturbed = swept.copy(tmp_path / "undisturbed")
    undisturbed.config = swept.config
    undisturbed.run("sweep")
    kill_once_there_is(swept, "results/train/tiny_*/n1_gpu1/seed0/epoch_1.json")
    kill_once_there_is(swept, "results/sweeps/tiny/trials_1.json")
    assert not swept.path("results/sweeps/tiny/chosen.yaml").exists()
    swept.run("sweep")
    for name in FILES:
        ours, theirs = (one.path("results/sweeps/tiny") / name for one in (swept, undisturbed))
        assert ours.read_text() == theirs.read_text(), name

    table = pd.read_csv(swept.path("results/sweeps/tiny/table.csv"))
    assert len(table) == 6
    stopped = table[table["state"].str.startswith("stopped after epoch 1")]
    assert 2 <= len(stopped) <= 4, "half of the first generation is above the median"
    assert not [one for one in stopped["trial"] if trained(swept, one) != [1]]
    complete = table.drop(stopped.index)["trial"]
    assert [trained(swept, one) for one in complete] == [[1, 2]] * len(complete)
    best = table["trial"][0]
    evaluated = {path.parts[-4] for path in swept.path(".").glob("results/evaluate/*/*/*/*.json")}
    assert evaluated == {"tiny", best}, "test data are for the chosen trial alone"

    chosen = undisturbed.path("results/sweeps/tiny/chosen.yaml")
    # Not of the killed one: Snakemake does not see marks of unfinished jobs behind a checkpoint, and asks
    # for such a job once more when no checkpoint stands before it. It finds its run in the store.
    undisturbed.config = yaml.safe_load(chosen.read_text())
    assert undisturbed.planned("evaluate") == {}, "its runs are there"


def trained(project, trial):
    folder = project.path(f"results/train/{trial}/n1_gpu1/seed0")
    return sorted(json.loads(path.read_text())["epoch"] for path in folder.glob("epoch_*.json"))


def kill_once_there_is(project, pattern):
    """Run the sweep, and kill Snakemake with all it has started as soon as a file is there."""
    running = subprocess.Popen(
        project.command("sweep"),
        cwd=project.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=project.environment(),
        start_new_session=True,
    )
    end = time.monotonic() + 300
    try:
        while not [*project.root.glob(pattern)]:
            assert running.poll() is None, "the sweep ended before it was killed"
            assert time.monotonic() < end, f"no {pattern}"
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    project.run("--unlock")
