"""What a configuration asks for, and what it is refused for."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from plans import changed, config, icon, small, traffic, weather

from millrace.errors import ConfigError, DataError
from millrace.job_requests import measure_request, segment_request
from millrace.plan import Plan
from millrace.systems.registry import get_model, kinds, models
from millrace.systems.traffic.system import FORMATS
from millrace.training import run_hash


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [
        (100, 20, [20, 40, 60, 80, 100]),
        (10, 4, [4, 8, 10]),
        (10, 10, [10]),
        (10, 50, [10]),
        (3, 1, [1, 2, 3]),
        (10, None, [10]),
    ],
)
def test_milestones(epochs, every, expected) -> None:
    made = changed("experiments/head/train/epochs", epochs)
    made["experiments"]["head"]["train"]["milestone_every"] = every
    if every is None:
        del made["experiments"]["head"]["train"]["milestone_every"]
    assert Plan(made).milestones("head") == expected


def test_predictions_name_an_experiment_and_raw_files(tmp_path) -> None:
    made = config()
    block = {"experiment": "head", "layout": "n1_gpu1", "seed": 0, "source": str(tmp_path)}
    made["predictions"] = {"new": block, "demo": {**block, "source": "coast"}}
    plan = Plan(made)
    assert plan.prediction_source("new") == str(tmp_path)
    assert plan.prediction_source("demo") == "results/data/coast/raw"
    assert plan.prediction_fingerprint("demo") == {"steps": 300}
    made["predictions"]["demo"]["options"] = {"limit": 3}
    found = Plan(made).prediction_fingerprint("demo")
    assert found == {"files": {"steps": 300}, "options": {"limit": 3}}
    assert plan.predicted_files() == [
        f"results/predict/{n}/predictions.nc" for n in ("new", "demo")
    ]
    block["source"] = str(tmp_path / "gone")
    with pytest.raises(DataError, match="the name of a dataset"):
        Plan(made).prediction_source("new")
    block["experiment"] = "haed"
    with pytest.raises(ConfigError, match="no experiment named 'haed'"):
        Plan(made)


def test_segments_form_a_chain() -> None:
    plan = Plan(config())
    base = "results/train/head/n1_gpu1/seed0/epoch_"
    chain = {e: plan.previous_checkpoint("head", "n1_gpu1", 0, e) for e in (4, 8, 10)}
    assert chain == {4: [], 8: [f"{base}4.ckpt"], 10: [f"{base}8.ckpt"]}
    assert plan.final_checkpoint("head", "n1_gpu1", 0) == {
        "checkpoint": f"{base}10.ckpt",
        "receipt": f"{base}10.json",
    }


def test_more_epochs_change_neither_definition_nor_earlier_segments() -> None:
    short, long = Plan(config()), Plan(changed("experiments/head/train/epochs", 20))
    assert short.definition("head") == long.definition("head")
    assert short.definition("head")["train"] == {"global_batch": 8}
    assert long.milestones("head")[:2] == short.milestones("head")[:2]
    other = Plan(changed("experiments/head/train/global_batch", 16))
    assert other.definition("head") != short.definition("head")


def test_weights_of_another_run_are_an_input() -> None:
    assert Plan(config()).initial_checkpoint("head", 0) == []
    made = config()
    made["experiments"]["head"]["train"]["init_from"] = {"checkpoint": "a/epoch_3.ckpt"}
    assert Plan(made).initial_checkpoint("head", 0) == ["a/epoch_3.ckpt"]


def test_published_weights_are_an_input_unless_they_are_elsewhere(tmp_path) -> None:
    made, path = config(), tmp_path / "aurora.ckpt"
    path.touch()
    block = made["experiments"]["head"]["train"]
    for published in (path, tmp_path):
        block["init_from"] = {"published": str(published)}
        assert Plan(made).initial_checkpoint("head", 0) == [str(path)]
        assert Plan(made).outside() == [tmp_path]
    named = SimpleNamespace(experiment="head", layout="n1_gpu1", seed="7", epoch="10")
    outputs = {"checkpoint": "results/train/a.ckpt", "receipt": "a.json"}
    plan = Plan(made)
    inputs = {"init_from": plan.initial_checkpoint("head", 7)}
    request = segment_request(made, named, plan.definition("head"), inputs, outputs)
    assert request.definition["train"]["init_from"] == {"published": str(path)}
    block["init_from"] = {"published": "hf://microsoft/aurora/a.ckpt"}
    assert Plan(made).initial_checkpoint("head", 0) == Plan(made).outside() == []
    block["init_from"] = {"published": str(path), "checkpoint": "a/epoch_3.ckpt"}
    with pytest.raises(ConfigError, match="expected one of the keys checkpoint and published"):
        Plan(made)


def test_each_seed_starts_from_its_own_checkpoint() -> None:
    made = config()
    init_from = {"checkpoint": "a/seed{seed}/epoch_3.ckpt", "freeze": ["net"]}
    made["experiments"]["head"]["train"]["init_from"] = init_from
    plan = Plan(made)
    assert plan.initial_checkpoint("head", 7) == ["a/seed7/epoch_3.ckpt"]
    named = SimpleNamespace(experiment="head", layout="n1_gpu1", seed="7", epoch="10")
    outputs = {"checkpoint": "below/results/train/a.ckpt", "receipt": "a.json"}
    inputs = {"init_from": ["below/a/seed7/epoch_3.ckpt"]}
    request = segment_request(made, named, plan.definition("head"), inputs, outputs)
    expected = {"checkpoint": "below/a/seed7/epoch_3.ckpt", "freeze": ["net"]}
    assert request.definition["train"]["init_from"] == expected
    assert request.runs == "below/runs/head/n1_gpu1/seed7", "beside results/"
    assert plan.definition("head")["train"]["init_from"] == init_from, "one for all seeds"


def test_what_the_user_names_is_known_to_the_image() -> None:
    made = changed("datasets/coast/source", "/data/coast")
    made["experiments"]["head"]["train"]["init_from"] = {"checkpoint": "/old/s{seed}/epoch_3.ckpt"}
    run = {"experiment": "head", "layout": "n1_gpu1", "seed": 0}
    made["predictions"] = {"a": run | {"source": "coast"}, "b": run | {"source": "/data/finer"}}
    assert Plan(made).outside() == [Path("/data/coast"), Path("/data/finer"), Path("/old")]
    assert Plan(config()).outside() == []


def test_measurements_start_from_the_checkpoint_of_the_first_seed() -> None:
    made = config()
    assert Plan(made).measured_checkpoint("head") == []
    block = made["experiments"]["head"]
    block["train"]["init_from"] = {"checkpoint": "a/seed{seed}/epoch_3.ckpt"}
    block["seeds"] = [7, 8]
    plan = Plan(made)
    [checkpoint] = plan.measured_checkpoint("head")
    assert checkpoint == "a/seed7/epoch_3.ckpt"
    params = SimpleNamespace(definition=plan.definition("head"), steps=3)
    named = SimpleNamespace(experiment="head", layout="n1_gpu1", mode="strong", repeat="0")
    inputs = {"patches": "patches.h5", "init_from": [checkpoint]}
    request = measure_request(made, named, params, inputs, "run.json")
    assert request.definition["train"]["init_from"]["checkpoint"] == checkpoint
    assert request.files == {"patches": "patches.h5"}


def test_how_it_is_computed_does_not_change_the_definition() -> None:
    made = config()
    values = {
        "micro_batch": 4,
        "compile": True,
        "log": ["wandb"],
        "profile": {"start": 1, "steps": 2},
    }
    made["experiments"]["head"]["train"] |= values | {"activation_checkpointing": True}
    assert Plan(made).definition("head") == Plan(config()).definition("head")


def test_products_of_the_lists_that_run() -> None:
    plan = Plan(config())
    runs = [(n, s) for n in ("n1_gpu1", "n2_gpu2") for s in (0, 3)]
    assert plan.metrics() == [f"results/evaluate/head/{n}/seed{s}/metrics.json" for n, s in runs]
    assert plan.final_checkpoints() == [plan.checkpoint("head", n, s, 10) for n, s in runs]
    ensembles = [f"results/evaluate/head/{n}/ensemble/metrics.json" for n in ("n1_gpu1", "n2_gpu2")]
    assert plan.ensembles() == ensembles
    together = plan.ensemble_checkpoints("head", "n2_gpu2")
    assert together["checkpoints"] == [plan.checkpoint("head", "n2_gpu2", s, 10) for s in (0, 3)]
    assert together["receipts"][1] == "results/train/head/n2_gpu2/seed3/epoch_10.json"
    assert Plan(changed("run/seeds", [5])).ensembles() == []
    base = "results/data/coast"
    assert plan.sample_files() == [f"{base}/graph_12x8x6_r0.2.h5", f"{base}/patches.h5"]


def test_raw_files_of_the_demo_and_of_the_user(tmp_path) -> None:
    plan = Plan(config())
    assert plan.data.source("coast") == "results/data/coast/raw"
    assert plan.data.fingerprint("coast") == {"steps": 300}
    plan = Plan(changed("datasets/coast/source", str(tmp_path)))
    assert plan.data.source("coast") == str(tmp_path)
    before = plan.data.fingerprint("coast")
    (tmp_path / "a.csv").write_text("x")
    assert plan.data.fingerprint("coast") != before
    with pytest.raises(DataError, match="no such directory"):
        Plan(changed("datasets/coast/source", str(tmp_path / "x"))).data.fingerprint("coast")


def test_an_address_is_planned_without_a_look_at_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a demo in the checkout has read files before
    made, address = weather(), "https://nowhere.invalid/era5.zarr"
    made["datasets"]["planet"] |= {"source": address, "store": "reference"}
    plan = Plan(made)
    assert plan.data.source("planet") == plan.data.fingerprint("planet") == address
    assert plan.data.section("planet", "weather") == {"store": "reference"}
    assert plan.data.parts("planet", "weather") == 1
    assert plan.outside() == []
    made["datasets"]["planet"]["store"] = "copy"
    assert Plan(made).data.section("planet", "weather") == {}, "samples that are there stay valid"
    with pytest.raises(DataError, match=r"coast\.source: no directory 'https://nowhere"):
        Plan(changed("datasets/coast/source", address)).data.source("coast")


def test_samples_follow_from_the_model() -> None:
    plan = Plan(icon())
    assert plan.sample_files() == ["results/data/globe/blocks.h5"]
    assert plan.data.datasets_in("icon") == "globe"
    assert plan.ensembles() == [], "a downscaler is itself an ensemble"


@pytest.mark.parametrize("kind", kinds()["scenarios"].formats)
def test_all_formats_of_traffic_become_scenarios(kind, tmp_path) -> None:
    made = traffic()
    made["datasets"]["town"] |= {"format": kind, "source": str(tmp_path)}
    plan = Plan(made)
    assert plan.sample_files() == ["results/data/town/scenarios.h5"]
    assert plan.data.datasets_in(*FORMATS) == "town"
    assert plan.data.source("town") == str(tmp_path)


def test_vocabularies_are_not_mixed() -> None:
    made = traffic()
    made["datasets"]["other"] = made["datasets"]["town"]
    made["experiments"]["drive"]["dataset"] = ["town", "other"]
    with pytest.raises(ConfigError, match=r"drive\.dataset: .* vocabularies of their own"):
        Plan(made)


def test_other_systems_still_need_a_split() -> None:
    made = icon()
    del made["datasets"]["globe"]["split"]
    with pytest.raises(ConfigError, match=r"datasets\.globe: key 'split' is missing"):
        Plan(made)


def test_weather_is_planned() -> None:
    plan = Plan(weather())
    assert plan.samples("globe") == {"weather": "results/data/planet/weather.h5"}
    assert plan.data.datasets_in("weather") == "planet"
    assert not [path for path in plan.ensembles() if "globe" in path]


def test_an_experiment_may_have_its_own_layouts_and_seeds() -> None:
    made = config()
    made["experiments"]["other"] = made["experiments"]["head"] | {
        "layouts": ["n1_gpu4"],
        "seeds": [7],
    }
    made["run"]["experiments"] = ["head", "other"]
    plan = Plan(made)
    runs = [path for path in plan.metrics() if "/other/" in path]
    assert runs == ["results/evaluate/other/n1_gpu4/seed7/metrics.json"]
    assert len(plan.metrics()) == 5
    assert not [path for path in plan.ensembles() if "/other/" in path]
    made["experiments"]["other"]["seeds"] = [7, 8]
    plan = Plan(made)
    assert "results/evaluate/other/n1_gpu4/ensemble/metrics.json" in plan.ensembles()
    receipts = plan.ensemble_checkpoints("other", "n1_gpu4")["receipts"]
    assert [path.split("/")[4] for path in receipts] == ["seed7", "seed8"]


def test_models_that_are_not_applied_to_raw_files_are_not_predicted_with(monkeypatch) -> None:
    made = icon()
    kind = Plan.kind
    monkeypatch.setattr(Plan, "kind", lambda *given: replace(kind(*given), application=None))
    made["predictions"] = {
        "new": {"experiment": "fine", "layout": "n1_gpu1", "seed": 0, "source": "globe"}
    }
    with pytest.raises(ConfigError, match="models on blocks, as that of fine, are not applied"):
        Plan(made)


def test_only_samples_that_follow_on_each_other_are_replayed() -> None:
    made = icon()
    made["experiments"]["fine"]["train"]["replay"] = {"longest": 4}
    with pytest.raises(ConfigError, match=r"fine\.train\.replay: samples of blocks do not follow"):
        Plan(made)
    made = config()
    made["experiments"]["head"]["train"]["replay"] = {"longest": 4}
    with pytest.raises(ConfigError, match=r"head\.train\.replay\.longest: expected 20 or more"):
        Plan(made)
    for name, model in models().items():
        assert kinds()[model.kind].replay == (get_model(name).continued is not None), name


def test_texts_are_numbers_in_all_that_follows_from_a_configuration() -> None:
    """YAML 1.1 takes 5e-3 for text; the run hash must be that of 0.005."""

    def planned(rate, epochs, radius, steps, share):
        made = config()
        head = made["experiments"]["head"]
        head["train"] |= {"learning_rate": rate, "epochs": epochs, "micro_batch": steps}
        head["model"]["radius"] = radius
        head["data"]["input_steps"] = steps
        made["datasets"]["coast"]["patches"] = {"ghost_fraction": share}
        before = copy.deepcopy(made)
        plan = Plan(made)
        assert made == before, "the user's configuration stays as it is"
        return plan

    plan = planned("5e-3", "2e1", "2e-1", "4", "5e-2")
    plain = planned(0.005, 20, 0.2, 4, 0.05)
    hashes = {run_hash.digest(one.definition("head")) for one in (plan, plain)}
    assert len(hashes) == 1
    assert plan.samples("head") == plain.samples("head")
    assert repr(plan.config) == repr(plain.config), "what jobs are given"
    request = [
        segment_request(
            one.config,
            SimpleNamespace(experiment="head", layout="n1_gpu1", seed="0", epoch="4"),
            one.definition("head"),
            {},
            {"checkpoint": "a.ckpt", "receipt": "a.json"},
        )
        for one in (plan, plain)
    ]
    assert request[0] == request[1]
    assert request[0].execution == {"micro_batch": 4}


def test_planning_needs_no_torch() -> None:
    program = "import json, sys; from millrace.plan import Plan;"
    program += "[Plan(one) for one in json.load(sys.stdin)]; sys.exit('torch' in sys.modules)"
    given = json.dumps([*map(small, models())])
    done = subprocess.run([sys.executable, "-c", program], input=given, text=True)
    assert done.returncode == 0


def parted(tmp_path, monkeypatch, **keys) -> Plan:
    """A plan of traffic in raw files of 25 bytes, of which a job takes 10."""
    (tmp_path / "raw").mkdir(exist_ok=True)
    (tmp_path / "raw/a.tfrecord").write_bytes(b"0" * 25)
    monkeypatch.setattr("millrace.data_stage.PART_BYTES", 10)
    made = traffic()
    made["datasets"]["town"] |= {"format": "waymo", "source": str(tmp_path / "raw"), **keys}
    return Plan(made, root=tmp_path)


def test_parts_follow_from_the_size_of_raw_files_or_the_configuration(
    tmp_path, monkeypatch
) -> None:
    plan = parted(tmp_path, monkeypatch)
    assert plan.data.parts("town", "scenarios") == 3
    files = [f"results/data/town/parts/scenarios_{n}.h5" for n in range(3)]
    assert plan.data.part_files("town", "scenarios") == files
    assert parted(tmp_path, monkeypatch, parts=7).data.parts("town", "scenarios") == 7
    monkeypatch.setattr("millrace.data_stage.MOST_PARTS", 2)
    assert parted(tmp_path, monkeypatch).data.parts("town", "scenarios") == 2


def test_jobs_count_no_raw_files(tmp_path, monkeypatch) -> None:
    plan = parted(tmp_path, monkeypatch)
    plan.data.count_parts()
    assert plan.config["datasets"]["town"]["parts"] == 3
    (tmp_path / "raw/b.tfrecord").write_bytes(b"0" * 50)
    assert Plan(plan.config, root=tmp_path).data.parts("town", "scenarios") == 3


def test_what_was_made_whole_stays_whole_and_archived_files_keep_their_parts(
    tmp_path, monkeypatch
) -> None:
    made = tmp_path / "results/data/town"
    (made / "parts").mkdir(parents=True)
    (made / "scenarios.h5").touch()
    plan = parted(tmp_path, monkeypatch)
    assert plan.data.parts("town", "scenarios") == 1
    for number in range(3):
        (made / f"parts/scenarios_{number}.h5").touch()
    assert parted(tmp_path, monkeypatch).data.parts("town", "scenarios") == 3
    (tmp_path / "raw/a.tfrecord").unlink()
    (tmp_path / "raw").rmdir()
    assert Plan(plan.config, root=tmp_path).data.parts("town", "scenarios") == 3


def test_tracks_that_an_earlier_version_converted_are_used(tmp_path, monkeypatch) -> None:
    plan = parted(tmp_path, monkeypatch)
    assert plan.data.readable("town") == (str(tmp_path / "raw"), "waymo")
    (tmp_path / "results/data/town/tracks").mkdir(parents=True)
    assert plan.data.readable("town") == ("results/data/town/tracks", "tracks")


def test_datasets_are_made_whole_or_in_parts(tmp_path, monkeypatch) -> None:
    in_three, whole = (parted(tmp_path, monkeypatch, parts=n) for n in (3, 1))
    for plan, expected in ((in_three, ("(?!)", "town")), (whole, ("town", "(?!)"))):
        found = [
            plan.data.datasets_in("waymo", kind="scenarios", in_parts=parts)
            for parts in (False, True)
        ]
        assert tuple(found) == expected


def test_runs_that_are_compared_are_trained_and_scored() -> None:
    made = config()
    run = {"experiment": "head", "layout": "n1_gpu2", "seed": 0}
    made["comparisons"] = {"luck": {"a": run, "b": run | {"seed": 7, "layout": "n4_gpu1"}}}
    plan = Plan(made)
    assert plan.compared_runs("luck") == {
        "metrics": [
            "results/evaluate/head/n1_gpu2/seed0/metrics.json",
            "results/evaluate/head/n4_gpu1/seed7/metrics.json",
        ],
        "receipts": [
            "results/train/head/n1_gpu2/seed0/epoch_10.json",
            "results/train/head/n4_gpu1/seed7/epoch_10.json",
        ],
    }
    assert plan.compared_files() == ["results/compare/luck.html"]
    assert {"n1_gpu2", "n4_gpu1"} <= {*plan.layouts()}
    assert ("head", "n4_gpu1", "train_segment") in plan.trainings()
    made["comparisons"]["luck"]["b"]["experiment"] = "haed"
    with pytest.raises(
        ConfigError, match=r"comparisons\.luck\.b\.experiment: .*did you mean 'head'"
    ):
        Plan(made)


def test_experiments_on_other_samples_are_not_compared() -> None:
    made = icon()
    other = next(name for name in made["experiments"] if name != "head")
    run = {"layout": "n1_gpu1", "seed": 0}
    made["comparisons"] = {
        "odd": {"a": run | {"experiment": "head"}, "b": run | {"experiment": other}}
    }
    with pytest.raises(
        ConfigError, match=r"comparisons\.odd: head is on samples of patches, .* on blocks"
    ):
        Plan(made)
