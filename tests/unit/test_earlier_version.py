"""Results and runs of commit ad8fee3 stay usable, see tests/fixtures/ad8fee3/README.md."""

import csv
import json
import shutil
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from project import Project

from millrace.data.extraction import simulate
from millrace.data.samples import dataset_class
from millrace.errors import ExitCode
from millrace.evaluation.predict import predict_files
from millrace.evaluation.run import evaluate_run
from millrace.evaluation.summary import summarise
from millrace.plan import Plan
from millrace.runs import command
from millrace.runs.inventory import find_runs
from millrace.scaling import records
from millrace.systems.downscaling import ensembles, evaluation
from millrace.systems.downscaling.sampling import SamplerConfig
from millrace.systems.registry import raw_format
from millrace.training import run_hash, segment
from millrace.training.deadline import Deadline, Stop
from millrace.training.request import Request
from millrace.training.store import load_state
from millrace.training.usage import read_sessions

FIXTURE = Path(__file__).parents[1] / "fixtures/ad8fee3"
EXPERIMENTS = json.loads((FIXTURE / "run_hashes.json").read_text())
DIGEST = "0123456789abcdef"
RUN = "tiny/n1_gpu1/seed0"
STORE = f"runs/{RUN}"
OUTPUT = f"results/train/{RUN}/epoch_"
MILESTONE, LAST = 2, 3
# Another machine rounds in another way.
ROUNDING = 1e-5


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_run_hash_of_an_experiment_stays(name, alone, monkeypatch):
    def open_dataset(kind, files, config, device):
        dataset = object.__new__(dataset_class(kind))
        dataset.config = dataset.config_type.parse(config, "data")
        dataset.digest = dataset.digest_of_tokens = DIGEST
        dataset.vocabulary = SimpleNamespace(digest=DIGEST)
        return dataset

    monkeypatch.setattr(segment, "open_dataset", open_dataset)
    monkeypatch.setattr(segment, "content_digest", lambda path: DIGEST)
    monkeypatch.setattr(segment, "Trainer", lambda *arguments: None)
    known = EXPERIMENTS[name]
    plan = SimpleNamespace(experiments={name: known["experiment"]})
    _, described = segment.build_trainer(Plan.definition(plan, name), {}, 0, alone)
    assert json.loads(json.dumps(described)) == known["identity"]
    assert run_hash.digest(described) == known["run_hash"]


def unpack(archive, directory):
    with tarfile.open(FIXTURE / archive) as file:
        file.extractall(directory, filter="data")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Configuration of a project with results and runs, in the current directory."""
    unpack("project.tar.xz", tmp_path)
    monkeypatch.chdir(tmp_path)
    return yaml.safe_load(Path("tiny.yaml").read_text())


def test_stores_and_outputs_are_listed_shown_and_verified(config, capsys):
    runs = find_runs(Path("runs"))
    assert [run.experiment for run in runs] == ["fine", "tiny"]
    for run in runs:
        assert {step.manifest.run_hash for step in run.steps} == {run.run_hash}
        assert sum(one["seconds"]["training"] for one in read_sessions(run.path)) > 0
    assert command.main(["list"]) == ExitCode.OK
    told = capsys.readouterr().out
    assert all(run.run_hash in told for run in runs)
    assert command.main(["show", RUN]) == ExitCode.OK
    assert f"{runs[1].history[-1]['validation_loss']:.4g}" in capsys.readouterr().out
    assert command.main(["verify"]) == ExitCode.OK
    # Of each store its name and steps, and all outputs.
    assert capsys.readouterr().out == "23 intact, 0 damaged\n"


@pytest.fixture
def train(config, alone, monkeypatch):
    """(previous checkpoint) -> state and receipt of the last epoch, trained as the workflow does."""
    monkeypatch.setattr(Deadline, "listen", lambda self: None)
    plan = Plan(config)

    def run(previous=None):
        request = Request(
            experiment="tiny",
            layout="n1_gpu1",
            seed=0,
            target_epoch=LAST,
            definition=plan.definition("tiny"),
            files=plan.samples("tiny"),
            runs=STORE,
            checkpoint=f"{OUTPUT}{LAST}.ckpt",
            receipt=f"{OUTPUT}{LAST}.json",
            previous=previous,
            final_epoch=LAST,
        )
        assert segment.run_segment(request, alone) is Stop.NO
        return load_state(Path(request.checkpoint)), json.loads(Path(request.receipt).read_text())

    return run


@pytest.mark.parametrize("left", ["store", "output"])
def test_training_goes_on_from_a_milestone(train, left):
    known, receipt = load_state(Path(f"{OUTPUT}{LAST}.ckpt")), _json(f"{OUTPUT}{LAST}.json")
    [run] = [run for run in find_runs(Path("runs")) if run.experiment == "tiny"]
    if left == "output":
        shutil.rmtree(STORE)
    else:
        shutil.rmtree(run.steps[-1].path)
    for suffix in ("ckpt", "json"):
        Path(f"{OUTPUT}{LAST}.{suffix}").unlink()
    state, made = train(f"{OUTPUT}{MILESTONE}.ckpt" if left == "output" else None)
    assert made["identity"] == receipt["identity"] == run.run_hash
    # The times of the epochs before are those that were measured then.
    assert state["history"][:MILESTONE] == known["history"][:MILESTONE]
    assert state["history"][-1]["seconds"] != known["history"][-1]["seconds"]
    losses = [[one["validation_loss"] for one in of["history"]] for of in (state, known)]
    assert losses[0] == pytest.approx(losses[1], rel=ROUNDING)
    assert state["step"] == known["step"]
    for name, weights in known["model"].items():
        error = torch.linalg.norm(state["model"][name] - weights)
        assert error <= 1e-6 * torch.linalg.norm(weights), name


def test_a_deleted_output_is_restored_without_training(train):
    checkpoint, receipt = Path(f"{OUTPUT}{LAST}.ckpt"), Path(f"{OUTPUT}{LAST}.json")
    known, described = checkpoint.read_bytes(), _json(receipt)
    checkpoint.unlink()
    receipt.unlink()
    train()
    assert checkpoint.read_bytes() == known
    assert _json(receipt)["history"] == described["history"]


@pytest.mark.parametrize(
    ("run", "epoch"), [(RUN, LAST), ("fine/n1_gpu1/seed0", 1)], ids=["gino", "downscaler"]
)
def test_a_checkpoint_has_the_same_scores(config, run, epoch, monkeypatch, tmp_path):
    # The downscaler's sampler was another one then, which can still be asked for.
    sampler = {"solver": "dpm3", "steps": 20}
    monkeypatch.setattr(ensembles, "SamplerConfig", partial(SamplerConfig, **sampler))
    monkeypatch.setattr(evaluation, "VALIDATION_SAMPLER", SamplerConfig(members=4, **sampler))
    path = Path(f"results/train/{run}/epoch_{epoch}.ckpt")
    files = Plan(config).samples(run.split("/")[0])
    made = [tmp_path / name for name in ("metrics.json", "figures", "training.png")]
    evaluate_run(path, path.with_suffix(".json"), files, *made)
    assert_holds(_json(made[0]), _json(f"results/evaluate/{run}/metrics.json"))


def test_a_checkpoint_gives_the_same_prediction(config, tmp_path):
    block = config["datasets"]["small"]
    simulate(raw_format(block), block["demo"], tmp_path / "raw")
    path = Path(f"{OUTPUT}{LAST}.ckpt")
    metrics = predict_files(path, tmp_path / "raw", tmp_path / "new.nc")
    known = _json("results/predict/new/metrics.json")
    assert metrics["forecasts"] == known["windows"]
    for name, scores in known["variables"].items():
        found = metrics["variables"][name]
        assert_holds(found["rmse"], scores["rmse"], name)
        assert_holds(found["baselines"]["persistence"]["rmse"], scores["persistence"]["rmse"], name)


def assert_holds(found, known, at=""):
    """Everything known is found, numbers to rounding; there may be more."""
    if isinstance(known, dict):
        for key in known.keys() - {"provenance"}:
            assert_holds(found[key], known[key], f"{at}.{key}")
    elif isinstance(known, list):
        assert len(found) == len(known), at
        for number, (one, other) in enumerate(zip(found, known, strict=True)):
            assert_holds(one, other, f"{at}[{number}]")
    else:
        same = isinstance(known, float) and found == pytest.approx(known, rel=ROUNDING, abs=1e-6)
        assert same or found == known, at


@pytest.mark.parametrize("named", [True, False], ids=["samples", "no samples"])
def test_metrics_give_the_same_table(config, named, tmp_path):
    """Metrics of patches and planes did not name their kind of samples at first."""
    names = [f"results/evaluate/{e}/{n}/seed0/metrics.json" for e, n in _runs(config)]
    for path in map(Path, names):
        metrics = _json(path)
        if not named and metrics["samples"] in ("patches", "planes"):
            del metrics["samples"]
            path.write_text(json.dumps(metrics))
    made = [tmp_path / f"skill.{suffix}" for suffix in ("html", "csv", "png")]
    summarise([Path(name) for name in names], [], *made)
    known, rows = (
        list(csv.DictReader(path.read_text().splitlines()))
        for path in (Path("results/report/skill.csv"), made[1])
    )
    assert len(rows) == len(known) > 8
    assert all(row.items() >= other.items() for row, other in zip(rows, known, strict=True))


def test_records_of_scaling_studies_are_read(config):
    paths = sorted(Path("results/scaling").glob("tiny/*/*/run_*.json"))
    runs = [records.read(path) for path in paths]
    assert {(run.mode, run.repeat) for run in runs} == {
        (m, r) for m in ("strong", "weak") for r in (0, 1)
    }
    assert all(run.layout == "n1_gpu1" and len(run.times.total[0]) == 3 for run in runs)


def test_nothing_is_made_again(tmp_path):
    project = Project(tmp_path / "project")
    unpack("planned.tar.xz", project.root)
    project.config = yaml.safe_load(project.path("tiny.yaml").read_text())
    targets = json.loads(project.path("targets.json").read_text())
    # But for predictions, which are files of another format since.
    assert project.planned(*targets) == {"predict": 1}
    # All that decides samples is still compared with the last run.
    datasets = project.config["datasets"]
    datasets["globe"]["blocks"]["levels"] = 1
    datasets["plain_globe"]["variables"].append("pr")
    datasets["planet"]["weather"]["levels"] = [500]
    datasets["folders"]["split"]["train"] = 0.5
    assert project.planned(*targets)["extract_samples"] == 4


def _json(path):
    return json.loads(Path(path).read_text())


def _runs(config):
    names = config["run"]["experiments"]
    layouts = [config["experiments"][name].get("layouts", ["n1_gpu1"])[0] for name in names]
    return zip(names, layouts, strict=True)
