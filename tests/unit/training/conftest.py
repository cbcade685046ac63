"""Trainers of the small experiments, and runs that stop where a test wants it."""

import copy

import pytest

from millrace.training.config import ExecutionConfig
from millrace.training.deadline import Deadline
from millrace.training.segment import build_trainer


class Recorder:
    """Keeps the last state, and asks for a stop after a given step."""

    def __init__(self, stop_after=None):
        self.deadline, self.state, self.stop_after = Deadline(None), None, stop_after

    def on_step(self, position, steps_per_epoch, loss):
        if position.step == self.stop_after:
            self.deadline._end = 0.0

    def on_epoch(self, record):
        pass

    def on_state(self, trainer, stopping):
        self.state = copy.deepcopy(trainer.state())


@pytest.fixture
def make_trainer(experiments, alone, monkeypatch):
    """(model, execution, **keys of the block train) -> trainer that looks at the clock every step."""
    monkeypatch.setattr("millrace.training.engine._AGREE_EVERY_S", 0.0)

    def make(model="gino", execution=None, seed=0, **train):
        definition, files = experiments[model]
        blocks = {**definition, "train": {**definition["train"], **train}}
        execution = ExecutionConfig(**execution or {})
        return build_trainer(blocks, files, seed, alone, execution)[0]

    return make


@pytest.fixture
def run():
    """(trainer, epochs, stop_after) -> the last state; None: no state was due."""

    def train(trainer, epochs, stop_after=None):
        recorder = Recorder(stop_after)
        trainer.run(epochs, recorder.deadline, recorder)
        return recorder.state

    return train
