"""Aurora through the real workflow, on the weather of a small planet, beside a project of groundwater."""

import copy
import csv
import json

import pytest
from project import Project

RUN = "whole/n1_gpu1/seed0"
DATASETS = {
    "planet": {
        "source": "demo",
        "format": "weather",
        "demo": {"steps": 40, "spin_up": 0.5},
        "split": {"train": 0.5, "validation": 0.2, "gap": 3},
        "weather": {"surface": ["2t"], "air": ["z"], "levels": [500, 850]},
    }
}
TRAIN = {"epochs": 2, "milestone_every": 1, "global_batch": 4, "loss": {"kind": "mae"}}
MODEL = {
    "name": "aurora",
    "embed_dim": 8,
    "encoder_depths": [1, 1, 1],
    "decoder_depths": [1, 1, 1],
    "encoder_heads": [1, 2, 2],
    "decoder_heads": [2, 2, 1],
    "perceiver_heads": 1,
    "latent_levels": 2,
    "window": [1, 4, 4],
}
EXPERIMENTS = {
    "whole": {"dataset": "planet", "data": {}, "model": MODEL, "train": TRAIN},
    "cut": {
        "dataset": "planet",
        "layouts": ["n1_gpu2"],
        "data": {},
        "model": MODEL,
        "train": TRAIN | {"epochs": 1},
        "parallel": {"pipeline": 2},
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("weather") / "project")
    configure(project)
    project.run("--cores", "2")
    return project


def configure(project):
    # Groundwater stays defined, so that both systems are known to one plan.
    project.config["datasets"] |= copy.deepcopy(DATASETS)
    project.config["experiments"] |= copy.deepcopy(EXPERIMENTS)
    project.config["run"] |= {"experiments": list(EXPERIMENTS), "seeds": [0]}
    return project


def history(project, run, epoch):
    receipt = json.loads(project.path(f"results/train/{run}/epoch_{epoch}.json").read_text())
    return [one["train_loss"] for one in receipt["history"]]


def test_all_is_made_from_the_raw_files(finished):
    metrics = json.loads(finished.path(f"results/evaluate/{RUN}/metrics.json").read_text())
    assert metrics["samples"] == "weather"
    test = metrics["test"]
    assert list(test["channels"]) == ["2t", "z_500", "z_850"]
    assert test["lead_hours"][:4] == [6, 12, 18, 24]
    errors = test["channels"]["z_500"]["rmse"]
    assert set(errors) == {"model", "persistence", "climatology"}
    assert errors["persistence"][0] < errors["persistence"][3]
    for shares in test["loss_share"].values():
        assert sum(shares.values()) == pytest.approx(1)
    figures = finished.path(f"results/evaluate/{RUN}/figures")
    assert {path.stem for path in (figures / "all").glob("*.png")} == {"scorecard", "loss_share"}
    for variable in ("2t", "z"):
        names = {path.stem for path in (figures / variable).glob("*.png")}
        assert names == {"by_lead", "maps", "spectra"}


def test_a_pipeline_trains_the_same_problem(finished):
    assert len(history(finished, RUN, 2)) == 2
    alone, divided = history(finished, RUN, 1), history(finished, "cut/n1_gpu2/seed0", 1)
    assert divided == pytest.approx(alone, rel=1e-4)


def test_the_table_compares_with_the_better_baseline(finished):
    with finished.path("results/report/skill.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["experiment"] for row in rows] == ["whole"] * 3 + ["cut"] * 3
    metrics = json.loads(finished.path(f"results/evaluate/{RUN}/metrics.json").read_text())
    errors = metrics["test"]["channels"]["2t"]["rmse"]
    at_24 = {name: values[3] for name, values in errors.items()}
    best = min(at_24["persistence"], at_24["climatology"])
    assert float(rows[0]["skill"]) == pytest.approx(1 - at_24["model"] / best)
    assert float(rows[0]["climatology_h24"]) == pytest.approx(at_24["climatology"])
    assert rows[0]["h120_skill"] == "", "the test period is shorter"
    assert "ACC of persistence, 24 h" in finished.path("results/report/skill.html").read_text()


def test_report(finished):
    text = finished.report()
    for expected in ("scorecard", "spectra", "table of test skill"):
        assert expected in text


@pytest.fixture
def project(finished, tmp_path):
    return configure(finished.copy(tmp_path / "project"))


def test_what_is_left_to_do(project):
    assert project.planned() == {}
    assert project.planned("data", "-R", "data")["extract_samples"] == 1
    project.config["experiments"]["cut"]["parallel"] = {"dp_shard": 2}
    assert project.planned() == {}, "how it is computed decides nothing"
    project.config["datasets"]["planet"]["weather"] = {"surface": ["2t"], "air": ["z"]}
    planned = project.planned()
    assert planned["extract_samples"] == 1
    assert planned["train_segment"] == 3
    assert "simulate_raw" not in planned
