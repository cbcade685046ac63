"""Every other system through the real workflow, from raw files to the report, beside groundwater."""

import copy
import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import pytest
import xarray as xr
from project import FOLDER, Project

from millrace.errors import ConfigError
from millrace.systems.traffic.simulator.sumo import program

pytestmark = pytest.mark.slow

AURORA = {
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
WEATHER_TRAIN = {"epochs": 2, "milestone_every": 1, "global_batch": 4, "loss": {"kind": "mae"}}
TOKENS = {"motion": 64, "road": 16, "tolerance": 0.2, "train": 0.5, "validation": 0.25}
SMART = {"name": "smart", "hidden": 8, "heads": 2, "map_layers": 1, "layers": 1, "bands": 4}


@dataclass(frozen=True)
class Case:
    """A system: what is configured, what is run, and what the results of the first experiment hold."""

    datasets: Mapping[str, Any]
    experiments: Mapping[str, Any]
    run: tuple[str, ...]
    figures: Mapping[str, set[str]]
    samples: str
    remade: Mapping[str, int]
    """Jobs of a forced data stage."""
    options: tuple[str, ...] = ()
    prepare: Callable[[Project], None] = lambda project: None

    @property
    def scored(self) -> str:
        return f"results/evaluate/{self.run[0]}/n1_gpu1/seed0"


def write_ngsim(project):
    """Five cars of three lanes that take turns, in feet, for two minutes."""
    folder = project.path("recordings")
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


CASES = {
    "downscaling": Case(
        datasets={
            "globe": {
                "source": "demo",
                "format": "icon",
                "demo": {"level": 2, "steps": 40, "steps_per_file": 20},
                "variables": ["tas"],
                "split": {"train": 0.6, "validation": 0.2, "gap": 2},
                "blocks": {"levels": 2},
            }
        },
        experiments={
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
        },
        run=("fine", "flat"),
        samples="blocks",
        figures={"tas": {"maps.png", "spectra.png", "reliability.png", "regions.png"}},
        remade={"extract_samples": 1},
    ),
    "weather": Case(
        datasets={
            "planet": {
                "source": "demo",
                "format": "weather",
                "demo": {"steps": 40, "spin_up": 0.5},
                "split": {"train": 0.5, "validation": 0.2, "gap": 3},
                "weather": {"surface": ["2t"], "air": ["z"], "levels": [500, 850]},
                "parts": 3,
            }
        },
        experiments={
            "whole": {"dataset": "planet", "data": {}, "model": AURORA, "train": WEATHER_TRAIN},
            "cut": {
                "dataset": "planet",
                "layouts": ["n1_gpu2"],
                "data": {},
                "model": AURORA,
                "train": WEATHER_TRAIN | {"epochs": 1},
                "parallel": {"pipeline": 2},
            },
        },
        run=("whole", "cut"),
        options=("--cores", "2"),
        samples="weather",
        figures={
            "all": {"scorecard.png", "loss_share.png"},
            "2t": {"by_lead.png", "maps.png", "spectra.png"},
            "z": {"by_lead.png", "maps.png", "spectra.png"},
        },
        remade={"extract_part": 3, "gather_samples": 1},
    ),
    "traffic": Case(
        datasets={
            "town": {
                "source": "demo",
                "format": "tracks",
                "demo": {"towns": 1, "scenes": 12, "cars_per_minute": 3},
                "tokens": {**TOKENS, "margin": 10.0, "max_agents": 12, "seed": 3},
            },
            "simulated": {"source": "demo", "format": "sumo", "tokens": {**TOKENS, "seed": 2}},
            "motorway": {
                "source": "recordings",
                "format": "ngsim",
                "tokens": {**TOKENS, "seed": 1},
            },
        },
        experiments={
            name: {
                "dataset": dataset,
                "data": {"buckets": 2},
                "model": {
                    **SMART,
                    "road_neighbours": 8,
                    "agent_neighbours": 4,
                    "map_neighbours": 4,
                },
                "train": {"epochs": 1, "global_batch": 4},
            }
            for name, dataset in (("drive", "town"), ("flow", "motorway"), ("sumo", "simulated"))
        },
        run=("drive",),
        samples="scenarios",
        figures={
            "motion": {
                *("animation.gif", "rollouts.png", "tokens.png", "error_by_horizon.png"),
                "rates.png",
            }
        },
        remade={"build_vocabulary": 1, "tokenise": 1},
        prepare=write_ngsim,
    ),
}


def configure(project, case):
    # Groundwater stays defined, so that both systems are known to one plan.
    project.config["datasets"] |= copy.deepcopy(dict(case.datasets))
    project.config["experiments"] |= copy.deepcopy(dict(case.experiments))
    project.config["run"] |= {"experiments": list(case.run), "seeds": [0]}
    return project


@pytest.fixture(scope="module")
def finished_systems(tmp_path_factory):
    """Projects that have run to the end, made when they are first asked for."""
    made = {}

    def finish(system):
        if system not in made:
            case = CASES[system]
            project = Project(tmp_path_factory.mktemp(system) / FOLDER)
            case.prepare(project)
            made[system] = configure(project, case)
            project.run(*case.options)
        return made[system]

    return finish


@pytest.fixture
def system(request):
    """Name of the case; by default, that of the mark `of`, else each in turn."""
    return request.param


@pytest.fixture
def case(system):
    return CASES[system]


@pytest.fixture
def finished(system, finished_systems):
    return finished_systems(system)


@pytest.fixture
def project(finished, case, tmp_path):
    """A finished project to change and plan again."""
    return configure(finished.copy(tmp_path / FOLDER), case)


def of(*systems):
    return pytest.mark.parametrize("system", systems, indirect=True)


each = of(*CASES)


def metrics(finished, case):
    return json.loads(finished.path(f"{case.scored}/metrics.json").read_text())


def table(finished):
    with finished.path("results/report/skill.csv").open() as file:
        return list(csv.DictReader(file))


def receipt(project, run, epoch):
    return json.loads(project.path(f"results/train/{run}/epoch_{epoch}.json").read_text())


@each
def test_all_is_made_from_the_raw_files(finished, case):
    assert metrics(finished, case)["samples"] == case.samples
    figures = finished.path(f"{case.scored}/figures")
    for name, drawn in case.figures.items():
        assert {path.name for path in (figures / name).glob("*.[pg][ni][gf]")} == drawn


@each
def test_report(finished, case):
    text = finished.report()
    stems = (name.partition(".")[0] for names in case.figures.values() for name in names)
    for expected in ("table of test skill", *stems):
        assert expected in text


@each
def test_what_is_left_to_do(project, case):
    assert project.planned() == {}
    planned = project.planned("data", "-R", "data")
    assert {job: planned[job] for job in case.remade} == case.remade


@of("downscaling")
def test_forecasts_on_blocks_keep_the_mean_of_a_block(finished, case):
    forecasts = metrics(finished, case)["test"]["tas"]
    assert set(forecasts) == {"model", "block_mean", "interpolation", "linear_regression"}
    assert forecasts["model"]["conservation"] < 1e-5
    assert 0 < forecasts["model"]["crps"] < forecasts["model"]["mae"]
    assert len(receipt(finished, "fine/n1_gpu1/seed0", 2)["history"]) == 2


@of("downscaling")
def test_the_table_compares_with_the_best_baseline(finished, case):
    rows = table(finished)
    assert [row["experiment"] for row in rows] == ["fine", "flat"]
    forecasts = metrics(finished, case)["test"]["tas"]
    best = min(scores["mae"] for name, scores in forecasts.items() if name != "model")
    assert float(rows[0]["skill"]) == pytest.approx(1 - forecasts["model"]["crps"] / best)
    assert rows[1]["spread_skill"] == "", "a regression has no spread"
    assert "CRPS of the best baseline" in finished.path("results/report/skill.html").read_text()


@of("downscaling")
def test_other_blocks_are_extracted_from_the_same_files(project):
    project.config["datasets"]["globe"]["blocks"] = {"levels": 1}
    planned = project.planned()
    assert (planned["extract_samples"], planned["train_segment"]) == (1, 3)
    assert "simulate_raw" not in planned


@of("downscaling")
def test_more_epochs_continue(project):
    project.config["experiments"]["fine"]["train"]["epochs"] = 3
    planned = project.planned()
    assert (planned["train_segment"], planned["evaluate_run"]) == (1, 1)


@of("weather")
def test_forecasts_of_weather_are_scored_by_lead(finished, case):
    test = metrics(finished, case)["test"]
    assert list(test["channels"]) == ["2t", "z_500", "z_850"]
    assert test["lead_hours"][:4] == [6, 12, 18, 24]
    errors = test["channels"]["z_500"]["rmse"]
    assert set(errors) == {"model", "persistence", "climatology"}
    assert errors["persistence"][0] < errors["persistence"][3]
    for shares in test["loss_share"].values():
        assert sum(shares.values()) == pytest.approx(1)


@of("weather")
def test_a_pipeline_trains_the_same_problem(finished):
    runs = ("whole/n1_gpu1/seed0", 2), ("whole/n1_gpu1/seed0", 1), ("cut/n1_gpu2/seed0", 1)
    both, alone, divided = (
        [one["train_loss"] for one in receipt(finished, *run)["history"]] for run in runs
    )
    assert len(both) == 2
    assert divided == pytest.approx(alone, rel=1e-4)


@of("weather")
def test_the_table_compares_with_the_better_baseline(finished, case):
    rows = table(finished)
    assert [row["experiment"] for row in rows] == ["whole"] * 3 + ["cut"] * 3
    errors = metrics(finished, case)["test"]["channels"]["2t"]["rmse"]
    at_24 = {name: values[3] for name, values in errors.items()}
    best = min(at_24["persistence"], at_24["climatology"])
    assert float(rows[0]["skill"]) == pytest.approx(1 - at_24["model"] / best)
    assert float(rows[0]["climatology_h24"]) == pytest.approx(at_24["climatology"])
    assert rows[0]["h120_skill"] == "", "the test period is shorter"
    page = finished.path("results/report/skill.html").read_text()
    assert "ACC of persistence, 24 h" in page
    taken = page.partition("What reading took")[2]
    assert '>planet</td><td class="name">extract_<wbr>weather</td><td>3</td>' in taken


@of("weather")
def test_how_it_is_computed_decides_nothing(project):
    project.config["experiments"]["cut"]["parallel"] = {"dp_shard": 2}
    assert project.planned() == {}
    project.config["datasets"]["planet"]["weather"] = {"surface": ["2t"], "air": ["z"]}
    planned = project.planned()
    assert (planned["extract_part"], planned["gather_samples"]) == (3, 1)
    assert planned["train_segment"] == 3
    assert "simulate_raw" not in planned


@of("weather")
def test_a_lost_part_is_made_alone(project):
    project.path("results/data/planet/parts/weather_1.h5").unlink()
    planned = project.planned("results/data/planet/weather.h5", "-R", "gather_samples")
    assert planned == {"extract_part": 1, "gather_samples": 1}


@of("weather")
def test_files_that_are_added_make_a_part_of_their_own(project):
    """What there was is neither planned nor read again; nor is it for another split."""
    samples, raw = "results/data/planet/weather.h5", project.path("years")
    raw.mkdir()
    with xr.open_dataset(project.path("results/data/planet/raw/weather.nc")) as data:
        for first in (0, 16, 32):
            data.isel(time=slice(first, first + 16)).to_netcdf(raw / f"{first}.nc")
    later = (raw / "32.nc").rename(project.path("later.nc"))
    planet = project.config["datasets"]["planet"]
    planet |= {"source": str(raw), "parts": 2}
    project.run(samples)
    before = parts_of(project)
    assert project.planned(samples) == {}
    planet["split"] = {**planet["split"], "train": 0.6}
    assert project.planned(samples) == {"gather_samples": 1}
    later.rename(raw / "32.nc")
    assert project.planned(samples) == {"extract_part": 1, "gather_samples": 1}
    assert parts_of(project) == before, "a dry run divides nothing"
    project.run(samples)
    assert [path for path, state in before.items() if parts_of(project)[path] != state] == []
    assert parts_of(project).keys() - before.keys() == {"weather_2.h5"}
    assert project.planned(samples) == {}
    with h5py.File(project.path(samples)) as file:
        assert file["state"].shape[0] == 40
    (raw / "16.nc").write_bytes((raw / "16.nc").read_bytes() + b" ")
    assert project.planned(samples) == {"extract_part": 1, "gather_samples": 1}


def parts_of(project):
    """Parts of the samples of weather that the division names, and what tells them apart."""
    folder = project.path("results/data/planet/parts")
    named = json.loads((folder / "weather.json").read_text())["tickets"]
    paths = (folder / f"weather_{number}.h5" for number in named)
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


@of("traffic")
def test_forecasts_of_motion_are_compared(finished, case):
    motion = metrics(finished, case)["test"]["motion"]
    forecasts = motion["forecasts"]
    assert set(forecasts) == {"model", "shuffled_map", "constant_velocity", "noise", "truth"}
    assert forecasts["truth"]["min_ade"] == 0 < forecasts["constant_velocity"]["min_ade"]
    assert motion["tokens"]["all"]["tokens"] > 0


@of("traffic")
def test_the_table_compares_with_constant_velocity(finished, case):
    [row] = table(finished)
    scores = metrics(finished, case)["test"]["motion"]["forecasts"]
    skill = 1 - scores["model"]["min_ade"] / scores["constant_velocity"]["min_ade"]
    assert float(row["skill"]) == pytest.approx(skill)
    assert "realism of the ground truth" in finished.path("results/report/skill.html").read_text()


@of("traffic")
def test_a_checkpoint_belongs_to_its_vocabulary(finished):
    with h5py.File(finished.path("results/data/town/vocabulary.h5")) as file:
        digest = file["vocabulary"].attrs["digest"]
    trained = receipt(finished, "drive/n1_gpu1/seed0", 1)
    assert trained["normalisation"] == {"vocabulary": digest}


@of("traffic")
def test_other_tokens_are_made_of_the_same_tracks(project):
    project.config["datasets"]["town"]["tokens"]["tolerance"] = 0.3
    planned = project.planned()
    assert (planned["build_vocabulary"], planned["tokenise"], planned["train_segment"]) == (1, 1, 1)
    assert "simulate_raw" not in planned


@of("traffic")
def test_a_second_stage_waits_for_the_first(project):
    checkpoint = "results/train/drive/n1_gpu1/seed{seed}/epoch_2.ckpt"
    tuned = copy.deepcopy(project.config["experiments"]["drive"])
    tuned["model"]["closed_loop"] = 8
    tuned["train"]["init_from"] = {"checkpoint": checkpoint}
    project.config["experiments"]["tuned"] = tuned
    project.config["experiments"]["drive"]["train"]["epochs"] = 2
    project.config["run"] |= {"experiments": ["tuned"], "seeds": [0, 1]}
    assert project.planned()["train_segment"] == 4, "two stages of each seed"


@of("traffic")
def test_a_recording_in_another_format_is_tokenised_at_once(project):
    project.run("results/data/motorway/scenarios.h5")
    with h5py.File(project.path("results/data/motorway/scenarios.h5")) as file:
        assert len(file["name"]) >= 10
        assert set(file["split"][()]) == {0, 1, 2}
    project.config["run"]["experiments"] = ["flow"]
    planned = project.planned()
    assert not {"build_vocabulary", "tokenise"} & planned.keys()


def simulator_installed():
    try:
        return bool(program("sumo"))
    except ConfigError:
        return False


@of("traffic")
def test_sumo_simulates_before_its_files_are_read(project):
    project.config["run"]["experiments"] = ["sumo"]
    planned = project.planned("results/data/simulated/scenarios.h5")
    jobs = ("simulate_raw", "build_vocabulary", "tokenise")
    assert planned == dict.fromkeys(jobs, 1)
    if not simulator_installed():
        done = project.run("results/data/simulated/raw", check=False)
        assert done.returncode != 0
        assert "install it with `pip install -r envs/sumo.lock`" in done.stdout + done.stderr
