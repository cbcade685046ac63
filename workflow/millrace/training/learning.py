"""Signs that a run does not learn: a loss that does not move, a repeated baseline, a seed far off.

Each function returns a sentence for the user, or None. The rules ask for much, so that a run that learns
slowly is not accused: what they do not see may still be a poor model, see its skill.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any, TypeVar

LEAST_EPOCHS, LEAST_STEPS = 3, 100
"""Epochs and optimiser steps before a loss is judged: the first ones may be warm-up."""
TYPICAL_GAIN, BEST_GAIN = 0.1, 0.25
"""Parts of its start by which the validation loss must have fallen in the later half of the epochs
(their median) or in the best one. The start is the loss of the initial weights, whose forecast is about
the mean, or no change: a gain is a skill over these. A model that stands still jumps about its start
with a large learning rate, now and then a fifth below it; one that has learned, and memorises the
training data since, has a best epoch far below."""
EQUAL = 0.01
"""Largest relative difference of errors that count as equal. Errors of two periods, of all variables
and lead times, agree that closely only if the forecasts do."""
FAR, DEVIATIONS = 1.5, 5.0
"""A seed is far if its errors differ from those of the median seed by more than this factor, and by
more than so many robust standard deviations (1.4826 times the median absolute deviation). Errors of
seeds differ by some ten per cent; a seed that stays at the baseline, where the others have a skill
above 1/3, differs by more than 1.5."""
LEAST_SEEDS = 3
"""Two seeds that differ do not say which one is odd."""

Seed = TypeVar("Seed")
Errors = Mapping[str, Sequence[float | None]]
"""Forecast -> its errors, in the same order for all; ``model`` is that of the run. None: not defined."""


def stalled_loss(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Tell that the loss does not move: no epochs are far enough below the start, see `TYPICAL_GAIN`.

    ``history`` are the records of the epochs, of which the first has ``initial_validation_loss``.
    Without it, in runs of earlier versions and in those that start from trained weights, nothing is
    said; neither before `LEAST_EPOCHS` and `LEAST_STEPS`.
    """
    start = history[0].get("initial_validation_loss") if history else None
    if start is None or len(history) < LEAST_EPOCHS or history[-1]["step"] < LEAST_STEPS:
        return None
    losses = [record["validation_loss"] for record in history]
    typical, best = median(losses[len(losses) // 2 :]), min(losses)
    if typical < (1 - TYPICAL_GAIN) * start or best < (1 - BEST_GAIN) * start:
        return None
    return (
        f"the loss does not move: the validation loss was {start:.4g} before training and is {typical:.4g} "
        f"in the later half of {len(losses)} epochs; try a lower learning rate, a warm-up, or another loss"
    )


def repeated_baseline(errors: Errors) -> str | None:
    """Tell that the forecasts equal a baseline: all its errors are those of the model, within `EQUAL`."""
    for name, baseline in errors.items():
        pairs = zip(errors["model"], baseline, strict=True)
        known = [(a, b) for a, b in pairs if a is not None and b]
        if name != "model" and known and all(abs(a - b) <= EQUAL * abs(b) for a, b in known):
            return f"the forecasts equal {name}: all errors agree within {EQUAL:.0%}"
    return None


def far_seeds(errors: Mapping[Seed, Errors]) -> dict[Seed, str]:
    """Tell which seeds of an experiment are far from the others, see `FAR`; by the keys of ``errors``.

    Compared are means over the logarithms of the model's errors, so that each counts by its relative
    difference.
    """
    levels = {seed: _level(one["model"]) for seed, one in errors.items()}
    known = {seed: level for seed, level in levels.items() if level is not None}
    if len(known) < LEAST_SEEDS:
        return {}
    centre = median(known.values())
    deviation = 1.4826 * median(abs(level - centre) for level in known.values())
    least = max(math.log(FAR), DEVIATIONS * deviation)
    return {
        seed: f"far from the other seeds: errors {math.exp(level - centre):.2g} times those of the median"
        for seed, level in known.items()
        if abs(level - centre) > least
    }


def _level(errors: Sequence[float | None]) -> float | None:
    logarithms = [math.log(error) for error in errors if error]
    return fmean(logarithms) if logarithms else None
