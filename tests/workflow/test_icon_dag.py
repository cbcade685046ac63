"""The downscaler through the real workflow, on a tiny globe, beside a project of groundwater."""

import copy
import csv
import json

import pytest
from project import Project

RUN = "fine/n1_gpu1/seed0"
DATASETS = {
    "globe": {
        "source": "demo",
        "format": "icon",
        "demo": {"level": 2, "steps": 40, "steps_per_file": 20},
        "variables": ["tas"],
        "split": {"train": 0.6, "validation": 0.2, "gap": 2},
        "blocks": {"levels": 2},
    }
}
EXPERIMENTS = {
    "fine": {
        "dataset": "globe",
        "data": {"variables": ["tas"]},
        "model": {"name": "downscaler", "channels": [4, 8, 8], "embedding": 8},
        "train": {"epochs": 2, "milestone_every": 1, "global_batch": 4, "ema": 0.9},
    },
    "flat": {
        "dataset": "globe",
        "data": {"variables": ["tas"]},
        "model": {"name": "regression", "channels": [4, 8, 8]},
        "train": {"epochs": 1, "global_batch": 4},
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("icon") / "project")
    configure(project)
    project.run()
    return project


def configure(project):
    # Groundwater stays defined, so that both systems are known to one plan.
    project.config["datasets"] |= copy.deepcopy(DATASETS)
    project.config["experiments"] |= copy.deepcopy(EXPERIMENTS)
    project.config["run"] |= {"experiments": list(EXPERIMENTS), "seeds": [0]}
    return project


def test_all_is_made_from_the_raw_files(finished):
    metrics = json.loads(finished.path(f"results/evaluate/{RUN}/metrics.json").read_text())
    assert metrics["samples"] == "blocks"
    forecasts = metrics["test"]["tas"]
    assert set(forecasts) == {"model", "block_mean", "interpolation", "linear_regression"}
    assert forecasts["model"]["conservation"] < 1e-5
    assert 0 < forecasts["model"]["crps"] < forecasts["model"]["mae"]
    figures = finished.path(f"results/evaluate/{RUN}/figures/tas")
    names = {path.stem for path in figures.glob("*.png")}
    assert names == {"maps", "spectra", "reliability", "regions"}
    receipt = json.loads(finished.path(f"results/train/{RUN}/epoch_2.json").read_text())
    assert len(receipt["history"]) == 2


def test_the_table_compares_with_the_best_baseline(finished):
    with finished.path("results/report/skill.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["experiment"] for row in rows] == ["fine", "flat"]
    metrics = json.loads(finished.path(f"results/evaluate/{RUN}/metrics.json").read_text())
    forecasts = metrics["test"]["tas"]
    best = min(scores["mae"] for name, scores in forecasts.items() if name != "model")
    skill = 1 - forecasts["model"]["crps"] / best
    assert float(rows[0]["skill"]) == pytest.approx(skill)
    assert rows[1]["spread_skill"] == "", "a regression has no spread"
    assert "CRPS of the best baseline" in finished.path("results/report/skill.html").read_text()


def test_report(finished):
    text = finished.report()
    for expected in ("reliability", "spectra", "table of test skill"):
        assert expected in text


@pytest.fixture
def project(finished, tmp_path):
    return configure(finished.copy(tmp_path / "project"))


def test_nothing_is_left_to_do(project):
    assert project.planned() == {}


def test_other_blocks_are_extracted_from_the_same_files(project):
    project.config["datasets"]["globe"]["blocks"] = {"levels": 1}
    planned = project.planned()
    assert planned["extract_samples"] == 1
    assert planned["train_segment"] == 3
    assert "simulate_raw" not in planned


def test_forced_data_stage_extracts_again(project):
    assert project.planned("data", "-R", "data")["extract_samples"] == 1


def test_more_epochs_continue(project):
    project.config["experiments"]["fine"]["train"]["epochs"] = 3
    planned = project.planned()
    assert (planned["train_segment"], planned["evaluate_run"]) == (1, 1)
