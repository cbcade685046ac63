"""Checkpoints within epochs: when they are taken, and that they are written beside the training."""

import errno
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from millrace.files import OutputError
from millrace.training.deadline import Deadline, Stop
from millrace.training.engine import Trainer
from millrace.training.request import Request
from millrace.training.saving import Saver
from millrace.training.segment import run_segment
from millrace.training.store import CheckpointStore, load_state

STEPS = 12
"""Of an epoch."""


@pytest.fixture
def segment(experiments, alone, monkeypatch, tmp_path):
    """(name, saving) -> what continues training and the steps in its store, after two epochs."""
    monkeypatch.setattr(Deadline, "listen", lambda self: None)
    monkeypatch.setattr("millrace.training.engine.AGREE_EVERY_S", 0.0)
    monkeypatch.setattr("millrace.training.store.discard", lambda *_, **__: None)
    definition, files = experiments["gino"]

    def run(name, **saving):
        request = Request(
            experiment="head",
            layout="n1_gpu1",
            seed=0,
            target_epoch=2,
            definition=definition,
            files=files,
            runs=str(tmp_path / name),
            checkpoint=str(tmp_path / name / "epoch_2.ckpt"),
            receipt=str(tmp_path / name / "epoch_2.json"),
            **saving,
        )
        assert run_segment(request, alone) is Stop.NO
        state = load_state(tmp_path / name / "epoch_2.ckpt")
        return {key: state[key] for key in ("model", "optimizer", "rng")}, steps(tmp_path / name)

    return run


def assert_same(one, other):
    """All tensors and values of two states are equal."""
    for found, expected in zip(tree_leaves(one), tree_leaves(other), strict=True):
        tensors = torch.is_tensor(found)
        assert torch.equal(found, expected) if tensors else np.array_equal(found, expected)


def steps(runs):
    """Directories of the steps of a run, by number."""
    return {int(path.name.split("_")[1]): path for path in runs.glob("*/step_*")}


def test_training_continues_from_within_an_epoch_bit_by_bit(segment, tmp_path):
    plain, saved = segment("plain")
    assert sorted(saved) == [STEPS, 2 * STEPS]
    same, saved = segment("more", save_steps=5)
    assert sorted(saved) == [5, 10, 12, 15, 20, 24]
    assert_same(same, plain)
    for number, path in saved.items():
        if number > 5:
            shutil.rmtree(path)
    (tmp_path / "more" / "epoch_2.ckpt").unlink()
    again, saved = segment("more", save_steps=7)
    assert sorted(saved) == [5, 7, 12, 14, 21, 24]
    assert_same(again, plain)
    receipt = json.loads((tmp_path / "more" / "epoch_2.json").read_text())
    assert [one["step"] for one in receipt["sessions"]] == [0, 5]


def test_a_clock_asks_for_checkpoints_once_the_one_before_is_written(segment):
    plain, _ = segment("plain")
    same, saved = segment("often", save_minutes=1e-9)
    assert len(saved) > 2
    assert_same(same, plain)
    _, saved = segment("seldom", save_minutes=1e6)
    assert sorted(saved) == [STEPS, 2 * STEPS]


def test_a_checkpoint_is_begun_so_early_that_it_is_written_in_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr("millrace.training.saving.time.monotonic", lambda: now)
    saver = Saver(None, minutes=1, step=0)

    def first_late(reserve):
        nonlocal now
        saver.begin(0)
        begun = now
        while not saver.is_late(1, reserve):
            now += 1
        return now - begun

    assert first_late(reserve=0) == 60
    assert first_late(reserve=7) == 53
    assert first_late(reserve=1000) == 30
    now += 1000
    assert not saver.is_late(0, reserve=7), "nothing new to save"


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(
    segment, monkeypatch
):
    commit, stepped = CheckpointStore.commit, threading.Event()
    step = Trainer.train_step

    def commit_later(self, state, *arguments):
        if state["step"] == 5:
            assert stepped.wait(300), "training waits"
        return commit(self, state, *arguments)

    def train_step(self, batch):
        loss = step(self, batch)
        if self.step >= 5:
            stepped.set()
        return loss

    _, saved = segment("at_once", save_steps=5)
    expected = load_state(saved[5] / "state.pt")
    monkeypatch.setattr(CheckpointStore, "commit", commit_later)
    monkeypatch.setattr(Trainer, "train_step", train_step)
    _, saved = segment("later", save_steps=5)
    found = load_state(saved[5] / "state.pt")
    for key in ("model", "optimizer", "rng"):
        assert_same(found[key], expected[key])


def test_a_full_disk_is_told_though_it_was_met_beside_the_training(segment, monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "state.pt")

    monkeypatch.setattr("millrace.training.store.checksum", fails)
    with pytest.raises(OutputError, match="No space left on device"):
        segment("full", save_steps=5)
