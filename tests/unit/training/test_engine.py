"""The training loop on one process: stopping, resuming, refusing what is not finite."""

import numpy as np
import pytest
from observers import silent
from tensors import assert_same

from millrace.checking.case import advance
from millrace.training.deadline import Deadline
from millrace.training.engine import NotFiniteError
from millrace.training.segment import build_trainer

EPOCHS = 3


@pytest.fixture(scope="module")
def uninterrupted(experiments, alone, run):
    trainer, _ = build_trainer(*experiments["gino"], 0, alone)
    run(trainer, EPOCHS)
    return trainer


@pytest.mark.parametrize("stop_after", [1, 4, 11, 12, 13, 24, 34])
def test_resume_is_bitwise(run, resume, uninterrupted, stop_after):
    second = resume(EPOCHS, stop_after)
    run(second, EPOCHS)
    assert_same(second.module.state_dict(), uninterrupted.module.state_dict())
    losses = [record["train_loss"] for record in second.history]
    assert losses == pytest.approx([r["train_loss"] for r in uninterrupted.history], rel=1e-12)
    assert [r["epoch"] for r in second.history] == [1, 2, 3]


def test_the_loss_before_training_is_kept_through_a_stop_in_the_first_epoch(
    run, resume, make_trainer, uninterrupted
):
    start = make_trainer().validation_loss()
    second = resume(1, stop_after=1)
    run(second, 1)
    for trainer in (second, uninterrupted):
        assert trainer.history[0]["initial_validation_loss"] == start
        assert all("initial_validation_loss" not in record for record in trainer.history[1:])


def test_learns(uninterrupted):
    losses = [record["validation_loss"] for record in uninterrupted.history]
    assert losses[-1] < 0.5 * losses[0]


def test_more_epochs_continue_the_same_run(make_trainer, run, uninterrupted):
    longer = make_trainer()
    run(longer, 1)
    run(longer, EPOCHS)
    assert_same(longer.module.state_dict(), uninterrupted.module.state_dict())


def test_stops_before_saving_what_is_not_finite(make_trainer):
    broken = make_trainer(learning_rate=1e30, clip_norm=None)
    observer = silent()
    with pytest.raises(NotFiniteError, match="infinite or NaN before step"):
        broken.run(EPOCHS, Deadline(), observer)
    observer.on_state.assert_not_called()
    observer.on_due.assert_not_called()


def test_each_step_has_the_rate_of_its_place_in_the_epochs(make_trainer):
    """Of the first: that at the very beginning."""
    schedule = {"kind": "cosine", "horizon": 2.0}
    trainer = make_trainer(learning_rate=3e-3, schedule=schedule)
    per_epoch = len(list(trainer.batches(0)))
    rates = [trainer.optimizer.param_groups[0]["lr"] for _ in advance(trainer, per_epoch + 2)]
    epochs = np.arange(per_epoch + 2) / per_epoch
    assert rates == pytest.approx(3e-3 * 0.5 * (1 + np.cos(np.pi * epochs / 2)), rel=1e-12)


def test_seed_decides_weights_and_order(make_trainer):
    one, again, other = (make_trainer(seed=seed).module.state_dict() for seed in (1, 1, 2))
    assert_same(one, again)
    with pytest.raises(AssertionError):
        assert_same(one, other)
