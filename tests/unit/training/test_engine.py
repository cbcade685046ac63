"""The training loop on one process: stopping, resuming, refusing what is not finite."""

import pytest
import torch

from millrace.training.deadline import Deadline
from millrace.training.distributed import Ranks
from millrace.training.engine import NotFiniteError
from millrace.training.segment import build_trainer

ALONE = Ranks(0, 1, torch.device("cpu"))
EPOCHS = 3


class Recorder:
    """Keeps every state, and asks for a stop before a given step."""

    def __init__(self, deadline=None, stop_before=None):
        self.states, self.records = [], []
        self._deadline, self._stop_before = deadline, stop_before

    def on_step(self, position, steps_per_epoch, loss):
        if position.step + 1 == self._stop_before:
            self._deadline._end = 0.0

    def on_epoch(self, record):
        self.records.append(record)

    def on_state(self, trainer, stopping):
        self.states.append((trainer.state(), stopping))


@pytest.fixture(autouse=True)
def agree_at_every_step(monkeypatch):
    monkeypatch.setattr("millrace.training.engine._AGREE_EVERY_S", 0.0)


@pytest.fixture
def trainer(samples, definition):
    def build(**train):
        blocks = {**definition, "train": {**definition["train"], **train}}
        return build_trainer(blocks, {k: str(v) for k, v in samples.items()}, 0, ALONE)[0]

    return build


@pytest.fixture(scope="module")
def uninterrupted(samples, definition):
    trainer, _ = build_trainer(definition, {k: str(v) for k, v in samples.items()}, 0, ALONE)
    trainer.run(EPOCHS, Deadline(None), Recorder())
    return trainer


@pytest.mark.parametrize("stop_before", [2, 5, 12, 13, 14, 25, 35])
def test_resume_is_bitwise(trainer, uninterrupted, stop_before, tmp_path):
    deadline = Deadline(None)
    first = trainer()
    recorder = Recorder(deadline, stop_before)
    assert not first.run(EPOCHS, deadline, recorder)
    assert first.step == stop_before - 1
    state, stopping = recorder.states[-1]
    assert stopping
    # Through a file, as a real restart would.
    torch.save(state, tmp_path / "state.pt")
    second = trainer()
    torch.manual_seed(99)
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.run(EPOCHS, Deadline(None), Recorder())
    assert_same_weights(second, uninterrupted)
    losses = [record["train_loss"] for record in second.history]
    assert losses == pytest.approx([r["train_loss"] for r in uninterrupted.history], rel=1e-12)
    assert [r["epoch"] for r in second.history] == [1, 2, 3]


def test_learns(uninterrupted):
    losses = [record["validation_loss"] for record in uninterrupted.history]
    assert losses[-1] < 0.5 * losses[0]


def test_more_epochs_continue_the_same_run(trainer, uninterrupted):
    longer = trainer()
    longer.run(1, Deadline(None), Recorder())
    longer.run(EPOCHS, Deadline(None), Recorder())
    assert_same_weights(longer, uninterrupted)


def test_stops_before_saving_what_is_not_finite(trainer):
    broken = trainer(learning_rate=1e30, clip_norm=None)
    recorder = Recorder()
    with pytest.raises(NotFiniteError, match="infinite or NaN before step"):
        broken.run(EPOCHS, Deadline(None), recorder)
    assert recorder.states == []


def test_seed_decides_weights_and_order(samples, definition):
    files = {k: str(v) for k, v in samples.items()}
    one, again, other = (build_trainer(definition, files, s, ALONE)[0] for s in (1, 1, 2))
    assert_same_weights(one, again)
    with pytest.raises(AssertionError):
        assert_same_weights(one, other)


def test_every_parameter_learns(trainer):
    model = trainer()
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    model.train_step(next(model.batches(0)))
    assert [n for n, p in model.module.named_parameters() if torch.equal(p, before[n])] == []


def assert_same_weights(a, b):
    for (name, x), y in zip(
        a.module.state_dict().items(), b.module.state_dict().values(), strict=True
    ):
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y), f"{name} differs"
