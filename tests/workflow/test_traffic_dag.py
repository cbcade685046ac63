"""SMART through the real workflow: tiny scenes of the simulator, and a recording that is converted."""

import copy
import csv
import json

import h5py
import pytest
from project import Project

from millrace.errors import ConfigError
from millrace.systems.traffic.simulator.sumo import program

RUN = "drive/n1_gpu1/seed0"
TOKENS = {"motion": 64, "road": 16, "tolerance": 0.2, "train": 0.5, "validation": 0.25}
DATASETS = {
    "town": {
        "source": "demo",
        "format": "tracks",
        "demo": {"towns": 1, "scenes": 12, "cars_per_minute": 3},
        "tokens": {**TOKENS, "margin": 10.0, "max_agents": 12, "seed": 3},
    },
    "simulated": {"source": "demo", "format": "sumo", "tokens": {**TOKENS, "seed": 2}},
    "motorway": {"source": "recordings", "format": "ngsim", "tokens": {**TOKENS, "seed": 1}},
}
MODEL = {"name": "smart", "hidden": 8, "heads": 2, "map_layers": 1, "layers": 1, "bands": 4}
EXPERIMENTS = {
    name: {
        "dataset": dataset,
        "data": {"buckets": 2},
        "model": {**MODEL, "road_neighbours": 8, "agent_neighbours": 4, "map_neighbours": 4},
        "train": {"epochs": 1, "global_batch": 4},
    }
    for name, dataset in (("drive", "town"), ("flow", "motorway"), ("sumo", "simulated"))
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("traffic") / "project")
    write_ngsim(project.path("recordings"))
    configure(project)
    project.run()
    return project


def configure(project):
    project.config["datasets"] |= copy.deepcopy(DATASETS)
    project.config["experiments"] |= copy.deepcopy(EXPERIMENTS)
    project.config["run"] |= {"experiments": ["drive"], "seeds": [0]}
    return project


def write_ngsim(folder):
    """Five cars of three lanes that take turns, in feet, for two minutes."""
    folder.mkdir()
    with (folder / "trajectories.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = ("Vehicle_ID", "Global_Time", "Local_X", "Local_Y", "v_Length", "v_Width")
        writer.writerow((*names, "v_Class", "Lane_ID"))
        for car in range(5):
            for step in range(1200):
                along = 30 * car + (2.0 + 0.3 * car) * step * 0.3
                writer.writerow(
                    (car, 100 * step, 6 + 12 * (car % 3), f"{along:.3f}", 15, 6, 2, car % 3)
                )


def test_all_is_made_from_the_raw_files(finished):
    metrics = json.loads(finished.path(f"results/evaluate/{RUN}/metrics.json").read_text())
    assert metrics["samples"] == "scenarios"
    forecasts = metrics["test"]["motion"]["forecasts"]
    assert set(forecasts) == {"model", "shuffled_map", "constant_velocity", "noise", "truth"}
    assert forecasts["truth"]["min_ade"] == 0 < forecasts["constant_velocity"]["min_ade"]
    assert metrics["test"]["motion"]["tokens"]["all"]["tokens"] > 0
    figures = finished.path(f"results/evaluate/{RUN}/figures/motion")
    names = {path.name for path in figures.iterdir()}
    stems = ("rollouts", "tokens", "error_by_horizon", "rates")
    assert names == {"animation.gif", *(f"{stem}.png" for stem in stems)}


def test_the_table_compares_with_constant_velocity(finished):
    with finished.path("results/report/skill.csv").open() as file:
        [row] = csv.DictReader(file)
    metrics = json.loads(finished.path(f"results/evaluate/{RUN}/metrics.json").read_text())
    of = metrics["test"]["motion"]["forecasts"]
    skill = 1 - of["model"]["min_ade"] / of["constant_velocity"]["min_ade"]
    assert float(row["skill"]) == pytest.approx(skill)
    assert "realism of the ground truth" in finished.path("results/report/skill.html").read_text()


def test_a_checkpoint_belongs_to_its_vocabulary(finished):
    receipt = json.loads(finished.path(f"results/train/{RUN}/epoch_1.json").read_text())
    with h5py.File(finished.path("results/data/town/vocabulary.h5")) as file:
        digest = file["vocabulary"].attrs["digest"]
    assert receipt["normalisation"] == {"vocabulary": digest}


def test_report(finished):
    text = finished.report()
    for expected in ("vocabularies", "error_by_horizon", "table of test skill"):
        assert expected in text


@pytest.fixture
def project(finished, tmp_path):
    return configure(finished.copy(tmp_path / "project"))


def test_nothing_is_left_to_do(project):
    assert project.planned() == {}


def test_other_tokens_are_made_of_the_same_tracks(project):
    project.config["datasets"]["town"]["tokens"]["tolerance"] = 0.3
    planned = project.planned()
    assert (planned["build_vocabulary"], planned["tokenise"], planned["train_segment"]) == (1, 1, 1)
    assert "simulate_raw" not in planned


def test_a_second_stage_waits_for_the_first(project):
    checkpoint = "results/train/drive/n1_gpu1/seed{seed}/epoch_2.ckpt"
    tuned = copy.deepcopy(project.config["experiments"]["drive"])
    tuned["model"]["closed_loop"] = 8
    tuned["train"]["init_from"] = {"checkpoint": checkpoint}
    project.config["experiments"]["tuned"] = tuned
    project.config["experiments"]["drive"]["train"]["epochs"] = 2
    project.config["run"] |= {"experiments": ["tuned"], "seeds": [0, 1]}
    assert project.planned()["train_segment"] == 4, "two stages of each seed"


def test_forced_data_stage_tokenises_again(project):
    planned = project.planned("data", "-R", "data")
    assert (planned["build_vocabulary"], planned["tokenise"]) == (1, 1)


def test_a_recording_in_another_format_is_converted(project):
    project.run("results/data/motorway/scenarios.h5")
    with h5py.File(project.path("results/data/motorway/scenarios.h5")) as file:
        assert len(file["name"]) >= 10
        assert set(file["split"][()]) == {0, 1, 2}
    project.config["run"]["experiments"] = ["flow"]
    assert "convert_tracks" not in project.planned()


def simulator_installed():
    try:
        return bool(program("sumo"))
    except ConfigError:
        return False


def test_sumo_simulates_before_its_files_are_converted(project):
    project.config["run"]["experiments"] = ["sumo"]
    planned = project.planned("results/data/simulated/scenarios.h5")
    jobs = ("simulate_raw", "convert_tracks", "build_vocabulary", "tokenise")
    assert planned == dict.fromkeys(jobs, 1)
    if not simulator_installed():
        done = project.run("results/data/simulated/raw", check=False)
        assert done.returncode != 0
        assert "install it with `pip install -r envs/sumo.lock`" in done.stdout + done.stderr
