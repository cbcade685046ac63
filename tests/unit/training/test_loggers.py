"""TensorBoard, Weights & Biases and MLflow: what they receive, and the message when they are missing."""

import json
import os
import re
import sys
import types

import pytest

from millrace.errors import ConfigError
from millrace.training import loggers
from millrace.training.config import ExecutionConfig, TrainSettings
from millrace.training.loggers import StepReports, check_loggers, open_loggers
from millrace.training.store import Position

_PATIENCE = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
DONE = Position(step=20, epoch=2, batch=0)
RECORD = {
    "epoch": 3,
    "step": 30,
    "train_loss": 0.5,
    "validation_loss": 0.25,
    "best_epoch": None,
    "note": "x",
}
NUMBERS = {key: RECORD[key] for key in ("epoch", "step", "train_loss", "validation_loss")}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_said_in_one_sentence(monkeypatch, name):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        check_loggers([name])
    check_loggers([])


def test_steps_are_reported_somewhere():
    with pytest.raises(
        ConfigError, match="train: log_steps: nothing reports steps; name tensorboard"
    ):
        ExecutionConfig.parse({"log_steps": 50}, "train")
    train = {"epochs": 10**6, "global_batch": 1, "milestone_every": 1}
    with pytest.raises(ConfigError, match="milestone_every"):  # what another base class checks
        TrainSettings.parse(train, "train")


@pytest.fixture
def wandb(monkeypatch):
    calls = {"logged": []}

    class Run:
        def log(self, values, step):
            calls["logged"].append((step, values))

        def finish(self):
            calls["finished"] = True

    def init(**options):
        calls["init"], calls["mode"] = options, os.environ.get("WANDB_MODE")
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


@pytest.mark.parametrize(("given", "mode"), [(None, "offline"), ("online", "online")])
def test_wandb_is_offline_unless_the_environment_says_otherwise(
    wandb, monkeypatch, tmp_path, given, mode
):
    monkeypatch.setenv("WANDB_MODE", "x")  # restored after the test, whatever happens to it
    if given is None:
        monkeypatch.delenv("WANDB_MODE")
    else:
        monkeypatch.setenv("WANDB_MODE", given)
    (logger,) = open_loggers(["wandb"], tmp_path / "1a2b", "head seed 0", DONE, {"seed": 0})
    logger.log(RECORD)
    logger.close()
    assert wandb["mode"] == mode
    assert wandb["logged"] == [(3, NUMBERS)]
    assert wandb["finished"]
    assert (wandb["init"]["id"], wandb["init"]["resume"]) == ("1a2b", "allow")
    assert not {"key", "api_key"} & wandb["init"].keys()
    json.dumps(wandb["init"]["config"])


def test_tensorboard_gets_every_number_and_steps_in_a_file_of_their_own(monkeypatch, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, directory, purge_step):
            self.name = directory.name
            written.append((self.name, purge_step))

        def add_scalar(self, *values):
            written.append((self.name, *values))

        def flush(self):
            pass

        def close(self):
            written.append((self.name, "closed"))

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    (logger,) = open_loggers(["tensorboard"], tmp_path, "head", DONE, {})
    logger.log(RECORD)
    logger.close()
    epochs = [
        ("tensorboard", 3),
        *(("tensorboard", name, value, 3) for name, value in NUMBERS.items()),
        ("tensorboard", "closed"),
    ]
    assert written == epochs
    written.clear()
    (logger,) = open_loggers(["tensorboard"], tmp_path, "head", DONE, {}, 5)
    logger.log_step(25, {"steps/loss": 0.5})
    logger.close()
    assert [one for one in written if one[0] == "steps"] == [
        ("steps", 21),
        ("steps", "steps/loss", 0.5, 25),
        ("steps", "closed"),
    ]


def test_some_steps_are_reported_once(wandb, tmp_path):
    (logger,) = open_loggers(["wandb"], tmp_path / "1a2b", "head", DONE, {}, 5)
    measured = []

    def measure():
        measured.append(len(measured))
        return {"loss": 0.5 + measured[-1]}

    reports = StepReports([logger], 5, DONE, measure)
    for step in (19, 20, 21, 25, 26, 24, 25, 30):  # 24 and 25 come again after a roll-back
        reports.on_step(step)
    logger.log(RECORD)
    assert wandb["logged"] == [
        (25, {"steps/loss": 0.5}),
        (30, {"steps/loss": 1.5}),
        (30, NUMBERS),
    ]
    assert len(measured) == 2, "a GPU is waited for where something is reported alone"
    for loggers_, every in (([], 5), ([logger], None)):
        StepReports(loggers_, every, DONE, measure).on_step(25)
    assert len(measured) == 2


class MlflowError(Exception):
    """As `mlflow.exceptions.MlflowException`."""


@pytest.fixture
def mlflow(monkeypatch):
    """A stand-in of `mlflow` that remembers runs and can be out of reach."""
    kept = types.SimpleNamespace(runs={}, uri=None, experiment=None, is_down=False)

    def reached(call):
        def tried(*arguments, **options):
            if kept.is_down:
                raise MlflowError("API request failed\nlong story")
            return call(*arguments, **options)

        return tried

    def of(number):
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=number))

    def named(name):
        """As MLflow refuses other names."""
        if not re.fullmatch(r"[/\w.\- :]*", name):
            raise MlflowError(f"Invalid value {name!r}: Names may only contain alphanumerics")

    class Client:
        @reached
        def __init__(self):
            kept.retries = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES")

        @reached
        def search_runs(self, experiments, text):
            assert experiments == ["7"]
            found = (
                n for n, one in kept.runs.items() if f"'{one['tags']['millrace.store']}'" in text
            )
            return [of(number) for number in found]

        @reached
        def create_run(self, experiment, tags, run_name):
            number = f"run{len(kept.runs)}"
            kept.runs[number] = {"tags": tags, "name": run_name, "metrics": [], "params": {}}
            kept.runs[number]["status"] = "RUNNING"
            return of(number)

        @reached
        def update_run(self, number, status):
            kept.runs[number]["status"] = status

        @reached
        def log_param(self, number, key, value):
            named(key)
            kept.runs[number]["params"][key] = value

        @reached
        def log_batch(self, number, metrics):
            for one in metrics:
                named(one.key)
            kept.runs[number]["metrics"] += metrics

        @reached
        def get_metric_history(self, number, key):
            return [one for one in kept.runs[number]["metrics"] if one.key == key]

        @reached
        def set_terminated(self, number):
            kept.runs[number]["status"] = "FINISHED"

    def metric(key, value, timestamp, step):
        assert timestamp > 1e12, "milliseconds"
        return types.SimpleNamespace(key=key, value=value, step=step)

    @reached
    def set_experiment(name):
        kept.experiment = name
        return types.SimpleNamespace(experiment_id="7")

    module = types.SimpleNamespace(
        set_tracking_uri=lambda uri: setattr(kept, "uri", uri),
        set_experiment=set_experiment,
        MlflowClient=Client,
        entities=types.SimpleNamespace(Metric=metric),
        exceptions=types.SimpleNamespace(MlflowException=MlflowError),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", *_PATIENCE):
        monkeypatch.setenv(name, "x")  # restored after the test, whatever happens to it
        monkeypatch.delenv(name)
    return kept


def test_mlflow_goes_on_with_the_run_of_a_store(mlflow, monkeypatch, tmp_path):
    config = {"model": {"name": "gino", "modes": [4, 2]}, "weights": {"T (°C), 100%": 2}}
    for number in range(2):  # the second session does again what a kill undid
        (logger,) = open_loggers(["mlflow"], tmp_path / "1a2b", "head seed 0", DONE, config, 5)
        logger.log_step(25, {"steps/loss": 0.5})
        logger.log(RECORD)
        (run,) = mlflow.runs.values()
        assert run["status"] == "RUNNING"
        logger.log({**RECORD, "epoch": 4 + number})
        logger.close()
        assert run["status"] == "FINISHED"
    assert mlflow.uri == f"sqlite:///{tmp_path}/1a2b/mlflow.db"
    assert (mlflow.experiment, run["name"]) == ("millrace", "head seed 0")
    weights = {"weights.T __C__ 100_": "2"}
    assert run["params"] == {"model.name": "gino", "model.modes": "[4, 2]"} | weights
    assert mlflow.retries == "2"
    shown = [(one.key, one.step) for one in run["metrics"]]
    assert shown == [("steps/loss", 25), *((key, n) for n in (3, 4, 5) for key in NUMBERS)]
    assert {one.key: one.value for one in run["metrics"][1:5]} == NUMBERS
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.lab.org")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "salt")
    open_loggers(["mlflow"], tmp_path / "3c4d", "head seed 1", DONE, config)
    assert (mlflow.uri, mlflow.experiment) == ("https://mlflow.lab.org", "salt")
    assert len(mlflow.runs) == 2


@pytest.mark.parametrize("when", ["at the beginning", "later"])
def test_training_goes_on_without_the_server_of_mlflow(mlflow, tmp_path, capsys, when):
    mlflow.is_down = when == "at the beginning"
    (logger,) = open_loggers(["mlflow"], tmp_path / "1a2b", "head", DONE, {})
    mlflow.is_down = True
    logger.log(RECORD)
    logger.log({**RECORD, "epoch": 4})
    logger.close()
    said = capsys.readouterr().err
    assert said.count("warning: train.log: MLflow gets no more of this session") == 1
    assert "(API request failed); metrics.jsonl has it all" in said
