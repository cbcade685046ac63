"""Runs that do not learn are recognised by their curves and errors, and others are not accused."""

import json
from pathlib import Path

import pytest

from millrace.training.learning import far_seeds, repeated_baseline, stalled_loss

CURVES = json.loads((Path(__file__).parent / "curves.json").read_text())


def history(start, losses, steps=50):
    records = [
        {"epoch": epoch, "step": steps * epoch, "validation_loss": loss}
        for epoch, loss in enumerate(losses, start=1)
    ]
    records[0]["initial_validation_loss"] = start
    return records


@pytest.mark.parametrize("name", CURVES["dead"])
def test_a_recorded_run_whose_loss_does_not_move_is_named(name):
    assert "the loss does not move" in stalled_loss(history(**CURVES["dead"][name]))


@pytest.mark.parametrize("name", CURVES["learned"])
def test_a_recorded_run_that_learned_or_does_so_slowly_is_not_accused(name):
    assert stalled_loss(history(**CURVES["learned"][name])) is None


def test_a_run_that_memorises_after_it_has_learned_is_not_accused():
    assert stalled_loss(history(1.0, [0.6, 0.4, 0.8, 1.1, 1.3])) is None


@pytest.mark.parametrize(
    "records",
    [
        [],
        history(None, [1.0] * 5),
        history(1.0, [1.0] * 2),
        history(1.0, [1.0] * 5, steps=10),
    ],
    ids=["no epochs", "trained weights", "two epochs", "fifty steps"],
)
def test_what_cannot_be_known_is_not_told(records):
    assert stalled_loss(records) is None


def test_forecasts_that_equal_a_baseline_are_told_with_its_name():
    errors = {
        "model": [1.0, 2.0, 5.0],
        "mean": [1.3, 2.0, 5.0],
        "persistence": [1.009, 1.981, None],
    }
    assert "equal persistence" in repeated_baseline(errors)


@pytest.mark.parametrize("baseline", [[1.02, 2.0], [None, None], [0.0, 0.0]])
def test_one_error_that_differs_or_nothing_to_compare_is_no_baseline(baseline):
    assert repeated_baseline({"model": [1.0, 2.0], "mean": baseline}) is None


def seeds(*levels):
    return {seed: {"model": [level, 3 * level, None]} for seed, level in enumerate(levels)}


@pytest.mark.parametrize(
    ("levels", "far"),
    [
        ((1.0, 1.05, 2.0), {2}),
        ((1.0, 1.05, 0.4), {2}),
        ((1.0, 1.02, 1.4), set()),  # as the seeds of Aurora's demo differ
        ((1.0, 1.7, 2.4, 0.5), set()),  # all differ
        ((1.0, 9.0), set()),
    ],
)
def test_a_seed_is_far_if_the_others_agree_and_it_does_not(levels, far):
    assert far_seeds(seeds(*levels)).keys() == far


def test_a_far_seed_is_told_by_how_much():
    assert far_seeds(seeds(1.0, 1.0, 2.0))[2].endswith("2 times those of the median")
