"""Early stopping and best weights: the same ones wherever a run was killed."""

import pytest
from tensors import assert_same

from millrace.errors import ConfigError
from millrace.training.config import EarlyStoppingConfig
from millrace.training.history import best_epoch, is_exhausted
from millrace.training.store import weights_of

# A rate so high that the validation loss rises after the best epoch.
RISING = {"learning_rate": 0.05, "early_stopping": {"patience": 3}, "keep_best": True}
LONG = 40


def history(*losses):
    return [{"epoch": e, "validation_loss": loss} for e, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(
    ("losses", "min_delta", "expected"),
    [
        ([], 0.0, None),
        ([3.0, 2.0, 2.0, 2.5], 0.0, 2),
        ([3.0, 2.0, 1.95, 1.91], 0.1, 2),
        ([3.0, 2.0, 1.95, 1.89], 0.1, 4),
        ([float("nan"), 5.0, float("nan")], 0.0, 2),
        ([float("nan")], 0.0, None),
    ],
)
def test_best_epoch(losses, min_delta, expected):
    assert best_epoch(history(*losses), min_delta) == expected


@pytest.mark.parametrize(
    ("losses", "exhausted"),
    [
        ([], False),
        ([3.0, 2.0, 2.5], False),
        ([3.0, 2.0, 2.5, 2.5], True),
        ([3.0, 2.0, 2.5, 1.8], False),
        ([3.0, 2.0, 1.95, 1.92], True),
        ([float("nan")] * 2, True),
    ],
)
def test_patience(losses, exhausted):
    config = EarlyStoppingConfig(patience=2, min_delta=0.1)
    assert is_exhausted(history(*losses), config) == exhausted
    assert not is_exhausted(history(*losses), None)


@pytest.mark.parametrize("values", [{"patience": 0}, {"patience": 2, "min_delta": -1.0}])
def test_nonsense_is_refused(values):
    with pytest.raises(ConfigError, match=r"train\.early_stopping"):
        EarlyStoppingConfig.parse(values, "train.early_stopping")


@pytest.fixture
def whole(make_trainer, run):
    trainer = make_trainer(**RISING)
    return trainer, run(trainer, LONG)


def test_stops_and_keeps_the_best(whole, make_trainer, run):
    trainer, state = whole
    assert trainer.stopped_early
    losses = [record["validation_loss"] for record in trainer.history]
    best = losses.index(min(losses)) + 1
    assert best < trainer.position.epoch == best + 3 < LONG
    assert state["best_epoch"] == trainer.history[-1]["best_epoch"] == best
    # They are the weights that a run of that many epochs ends with.
    until = run(make_trainer(learning_rate=0.05), best)
    assert_same(weights_of(state), until["model"])
    with pytest.raises(AssertionError):
        assert_same(weights_of(state), state["model"])


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.75, 0.95])
def test_killed_anywhere_same_best_epoch_and_same_weights(whole, resume, run, share):
    trainer, state = whole
    final = run(resume(LONG, int(share * trainer.step), **RISING), LONG)
    assert final["best_epoch"] == state["best_epoch"]
    assert final["step"] == state["step"]
    assert_same(final["best_model"], state["best_model"])
    assert_same(final["model"], state["model"])


def test_a_stopped_run_does_not_train_on(whole, make_trainer, run):
    trainer, state = whole
    again = make_trainer(**RISING)
    again.load(state)
    final = run(again, 2 * LONG)
    assert again.step == trainer.step
    assert_same(final["model"], state["model"])


def test_without_the_option_the_last_weights_count(make_trainer, run):
    state = run(make_trainer(), 2)
    assert "best_model" not in state
    assert_same(weights_of(state), state["model"])
