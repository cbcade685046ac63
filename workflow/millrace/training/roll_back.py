"""Going back before a loss that is not finite or a loss spike, with a smaller learning rate.

Training goes back to the end of the last epoch before. From there on the learning rate is smaller, so that
it follows from the step and the roll-backs so far, which are in every checkpoint. So the weights do not
depend on which checkpoints there were: from an earlier one the same epochs are computed again, bit by bit,
and a run that was killed meets the same loss and goes back alike.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from millrace.errors import NotFiniteError
from millrace.training.config import RollBackConfig

_EPOCHS = 10
"""Epochs before, of whose losses a spike is a multiple of the median."""

RollBacks = Sequence[Mapping[str, Any]]
"""In their order: ``step`` and ``epoch`` that training went back to, and the ``cause``."""


class DivergedError(NotFiniteError):
    """An epoch cannot be kept; the message says the ``cause``, ``where`` it was found, and ``advice``."""

    def __init__(self, cause: str, where: str, advice: str) -> None:
        super().__init__(f"{cause} {where}; the last checkpoint is intact: {advice}")
        self.cause = cause


def rate_factor(config: RollBackConfig | None, roll_backs: RollBacks, step: int) -> float:
    """Factor on the learning rate of a step."""
    return 1.0 if config is None else config.factor ** count(roll_backs, step)


def count(roll_backs: RollBacks, step: int) -> int:
    """Number of roll-backs that change the learning rate of a step."""
    return sum(one["step"] <= step for one in roll_backs)


def spike(
    config: RollBackConfig | None, history: Sequence[Mapping[str, Any]], name: str, loss: float
) -> str | None:
    """Tell that a loss is a spike beside those of the epochs before: their records under ``name``."""
    before = [record[name] for record in history[-_EPOCHS:]]
    if config is None or config.spike is None or not before:
        return None
    usual = median(before)
    if not loss > config.spike * usual > 0:
        return None
    what = name.replace("train_", "training ").replace("_", " ")
    return f"the {what} rose to {loss:.4g}, from {usual:.4g} in the epochs before,"


def told(roll_back: Mapping[str, Any]) -> str:
    """Say in a sentence what happened, and where training went on."""
    epoch = roll_back["epoch"]
    start = f"the end of epoch {epoch}" if epoch else "the beginning"
    return f"{roll_back['cause']} in epoch {epoch + 1}: rolled back to {start}"
