"""TensorBoard and Weights & Biases: what they receive, and the message when they are missing."""

import json
import os
import sys
import types

import pytest

from millrace.errors import ConfigError
from millrace.training import loggers
from millrace.training.loggers import check_loggers, open_loggers

RECORD = {"epoch": 3, "train_loss": 0.5, "validation_loss": 0.25, "best_epoch": None, "note": "x"}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_said_in_one_sentence(monkeypatch, name):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        check_loggers([name])
    check_loggers([])


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
    (logger,) = open_loggers(["wandb"], tmp_path / "1a2b", "head seed 0", 2, {"seed": 0})
    logger.log(RECORD)
    logger.close()
    assert wandb["mode"] == mode
    assert wandb["logged"] == [
        (3, {k: RECORD[k] for k in ("epoch", "train_loss", "validation_loss")})
    ]
    assert wandb["finished"]
    assert (wandb["init"]["id"], wandb["init"]["resume"]) == ("1a2b", "allow")
    assert not {"key", "api_key"} & wandb["init"].keys()
    json.dumps(wandb["init"]["config"])


def test_tensorboard_gets_every_number(monkeypatch, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, directory, purge_step):
            written.append((directory.name, purge_step))

        def add_scalar(self, *values):
            written.append(values)

        def flush(self):
            pass

        def close(self):
            written.append("closed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    (logger,) = open_loggers(["tensorboard"], tmp_path, "head", 2, {})
    logger.log(RECORD)
    logger.close()
    assert written == [
        ("tensorboard", 3),
        ("epoch", 3, 3),
        ("train_loss", 0.5, 3),
        ("validation_loss", 0.25, 3),
        "closed",
    ]
