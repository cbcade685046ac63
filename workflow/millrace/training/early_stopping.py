"""The best epoch so far, and whether to wait for a better one: pure functions of the history.

The history is in every checkpoint, so that both survive a resume without a state of their own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from millrace.training.config import EarlyStoppingConfig


def best_epoch(history: Sequence[Mapping[str, Any]], min_delta: float = 0.0) -> int | None:
    """Last epoch whose validation loss was lower than the best before by more than ``min_delta``.

    Parameters
    ----------
    history : sequence of mapping
        Records in order, with ``epoch`` and ``validation_loss``; a NaN is never best.

    Returns
    -------
    int or None
        None: no epoch had a finite loss.
    """
    best, lowest = None, math.inf
    for record in history:
        if record["validation_loss"] < lowest - min_delta:
            best, lowest = record["epoch"], record["validation_loss"]
    return best


def is_exhausted(history: Sequence[Mapping[str, Any]], config: EarlyStoppingConfig | None) -> bool:
    """Whether patience has run out at the end of ``history``."""
    if config is None or not history:
        return False
    best = best_epoch(history, config.min_delta)
    return history[-1]["epoch"] - (best or 0) >= config.patience
