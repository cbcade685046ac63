"""Segments of a run: what is published after an early stop, and what the receipt says."""

import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensors import assert_same

from millrace.errors import ConfigError, UserError
from millrace.models import native
from millrace.training.deadline import Deadline, Stop
from millrace.training.request import Request
from millrace.training.segment import build_trainer, run_segment
from millrace.training.store import load_state, weights_of

EPOCHS = 30
TRAIN = {"learning_rate": 0.05, "early_stopping": {"patience": 2}, "keep_best": True}


@pytest.fixture
def segment(experiments, alone, monkeypatch, tmp_path):
    """(target epoch, previous, execution) -> (state, receipt) of a segment that ran to its end."""
    monkeypatch.setattr(Deadline, "listen", lambda self: None)
    definition, files = experiments["gino"]
    blocks = {**definition, "train": {**definition["train"], **TRAIN}}

    def run(target, previous=None, execution=None):
        output = tmp_path / f"epoch_{target}.ckpt"
        request = Request(
            experiment="head",
            layout="n1_gpu1",
            seed=0,
            target_epoch=target,
            definition=blocks,
            files=files,
            runs=str(tmp_path / "runs"),
            checkpoint=str(output),
            receipt=str(output.with_suffix(".json")),
            save_every=100,
            execution=execution or {},
            previous=previous,
        )
        assert run_segment(request, alone) is Stop.NO
        return load_state(output), json.loads(Path(request.receipt).read_text())

    return run


def flip(path):
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_milestones_after_an_early_stop_are_the_last_state(segment, tmp_path):
    state, receipt = segment(EPOCHS)
    stopped = receipt["epoch"]
    assert stopped < EPOCHS
    assert receipt["stopped_early"]
    assert receipt["best_epoch"] == state["best_epoch"] == stopped - 2
    later, later_receipt = segment(2 * EPOCHS)
    assert later_receipt["stopped_early"]
    assert later_receipt["epoch"] == stopped
    assert later_receipt["checkpoint"]["crc32"] == receipt["checkpoint"]["crc32"]
    assert_same(later["model"], state["model"])
    # The store may be gone; the milestone before is enough.
    shutil.rmtree(tmp_path / "runs")
    again, again_receipt = segment(3 * EPOCHS, previous=str(tmp_path / f"epoch_{EPOCHS}.ckpt"))
    assert again_receipt["epoch"] == stopped
    assert_same(weights_of(again), weights_of(state))


def test_steps_are_reported_beside_epochs(segment, monkeypatch):
    logged = []

    def init(**options):
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=list)

    spec = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=spec))
    monkeypatch.setenv("WANDB_MODE", "offline")
    _, receipt = segment(1, execution={"log": ["wandb"], "log_steps": 1})
    [record] = receipt["history"]
    *steps, (last, epoch) = logged
    assert (last, epoch["train_loss"]) == (record["step"], record["train_loss"])
    assert [step for step, _ in steps] == [*range(1, record["step"] + 1)]
    assert {values["steps/learning_rate"] for _, values in steps} == {record["learning_rate"]}
    assert all(values["steps/gradient_norm"] > 0 for _, values in steps)
    mean = sum(values["steps/loss"] for _, values in steps) / len(steps)
    assert mean == pytest.approx(record["train_loss"], rel=0.1)


def test_a_damaged_milestone_is_not_trained_on(segment, tmp_path):
    segment(1)
    shutil.rmtree(tmp_path / "runs")
    previous = tmp_path / "epoch_1.ckpt"
    flip(previous)
    with pytest.raises(
        UserError, match=r"epoch_1\.ckpt: damaged.*delete it and run the train stage"
    ):
        segment(2, previous=str(previous))
    flip(previous)
    receipt = tmp_path / "epoch_1.json"
    receipt.write_text(receipt.read_text().replace('"epoch": 1', '"epoch": 7', 1))
    with pytest.raises(UserError, match=r"epoch_1\.json: damaged"):
        segment(2, previous=str(previous))


def test_a_segment_before_the_stop_says_so(segment):
    _, receipt = segment(1)
    assert (receipt["stopped_early"], receipt["epoch"], receipt["best_epoch"]) == (False, 1, 1)
    assert receipt["profiles"] == []


def test_how_it_is_computed_does_not_name_the_run(segment):
    _, plain = segment(1)
    state, receipt = segment(2, execution={"profile": {"start": 13, "steps": 2}, "micro_batch": 3})
    assert receipt["identity"] == plain["identity"]
    (trace,) = receipt["profiles"]
    assert Path(trace).name == "profile_step_13.json.gz"
    assert Path(trace).parent == Path(receipt["store"])
    assert state["step"] == 24
    executions = [session["execution"] for session in receipt["sessions"]]
    assert executions == [{}, {"micro_batch": 3, "profile": {"start": 13, "steps": 2}}]


@pytest.mark.parametrize("model", ["downscaler", "aurora", "smart"])
def test_samples_without_a_concentration_have_no_variance_weight(experiments, alone, model):
    definition, files = experiments[model]
    loss = {"kind": "mse", "variance_weight": 0.5}
    weighted = {**definition, "train": {**definition["train"], "loss": loss}}
    with pytest.raises(ConfigError, match="hold no variable whose errors it weighs"):
        build_trainer(weighted, files, 0, alone)


def test_a_run_that_goes_on_with_other_kernels_says_so(
    segment, compiler, monkeypatch, caplog, capfd
):
    segment(1)
    assert "kernels" not in capfd.readouterr().err
    monkeypatch.setenv(native.SWITCH, "0")
    native.has.cache_clear()
    try:
        state, _ = segment(2, previous=None)
    finally:
        native.has.cache_clear()
    told = caplog.text + "".join(capfd.readouterr())
    assert "resumed with another kernels" in told
    assert "-> PyTorch's" in told
    assert state["sessions"][0]["kernels"].startswith("compiled, ")
