"""Trainers of the small experiments, and runs that stop where a test wants it."""

import copy

import pytest
import torch

from millrace.training.config import ExecutionConfig
from millrace.training.deadline import Deadline
from millrace.training.engine import Observer
from millrace.training.segment import build_trainer


class Recorder(Observer):
    """Keeps the last state, and asks for a stop after a given step."""

    def __init__(self, stop_after=None):
        self.deadline, self.state, self.stop_after = Deadline(), None, stop_after

    def on_step(self, position, steps_per_epoch, loss):
        if position.step == self.stop_after:
            self.deadline.stop_now()

    def on_epoch(self, record):
        pass

    def on_state(self, trainer, stopping):
        self.state = copy.deepcopy(trainer.state())


@pytest.fixture
def make_trainer(experiments, alone, monkeypatch):
    """(model, execution, **keys of the section train) -> trainer that looks at the clock in every step."""
    monkeypatch.setattr("millrace.training.engine.AGREE_EVERY_S", 0.0)

    def make(model="gino", execution=None, seed=0, **train):
        definition, files = experiments[model]
        blocks = {**definition, "train": {**definition["train"], **train}}
        execution = ExecutionConfig(**execution or {})
        return build_trainer(blocks, files, seed, alone, execution)[0]

    return make


@pytest.fixture(scope="session")
def run():
    """(trainer, epochs) -> the last state."""

    def train(trainer, epochs):
        recorder = Recorder()
        assert trainer.run(epochs, recorder.deadline, recorder)
        return recorder.state

    return train


@pytest.fixture
def resume(make_trainer, tmp_path):
    """(epochs, stop_after, **arguments of make_trainer) -> trainer that continues, from a file, a run that
    was stopped after a step."""

    def resumed(epochs, stop_after, **given):
        recorder, first = Recorder(stop_after), make_trainer(**given)
        assert not first.run(epochs, recorder.deadline, recorder)
        assert first.step == stop_after
        torch.save(recorder.state, tmp_path / "state.pt")
        trainer = make_trainer(**given)
        torch.manual_seed(99)
        trainer.load(torch.load(tmp_path / "state.pt", weights_only=True))
        assert trainer.step == stop_after
        return trainer

    return resumed
