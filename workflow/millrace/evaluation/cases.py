"""Errors of a model on each test case, which `millrace runs compare` tests pair by pair.

A case is what is forecast once: a start, a time, a scenario, a sample. They are in ``cases`` of
`metrics.json`::

    names       of the cases: times of issue (UTC or days), scenarios, numbers of samples
    blocks      number of the block of each case: cases of one block are not independent
    errors      by variable and score, {"unit": ..., "values": one for each case}; less is better
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_DIGITS = 7


def case_record(
    names: Sequence[str],
    blocks: Sequence[int] | np.ndarray,
    errors: Mapping[str, Mapping[str, tuple[str, ArrayLike]]],
) -> dict[str, Any]:
    """Errors by case for `metrics.json`; ``errors`` are (unit, values) by variable and score.

    What is not defined is None. Raises `ValueError` if their numbers differ.
    """
    order = np.unique(np.asarray(blocks), return_inverse=True)[1].ravel()
    found = {
        variable: {
            score: {"unit": unit, "values": _plain(values)}
            for score, (unit, values) in scores.items()
        }
        for variable, scores in errors.items()
    }
    for scores in found.values():
        for one in scores.values():
            if not len(one["values"]) == len(names) == len(order):
                raise ValueError(
                    f"{len(one['values'])} errors and {len(order)} blocks of {len(names)} cases"
                )
    return {"names": [*names], "blocks": order.tolist(), "errors": found}


def blocks_in_time(times: ArrayLike, span: float) -> np.ndarray:
    """Number of the block of each time, in ascending order: one begins where the last is ``span`` old."""
    blocks, begin, number = [], -np.inf, -1
    for time in np.asarray(times, dtype=np.float64):
        if time - begin >= span * (1 - 1e-9):
            begin, number = time, number + 1
        blocks.append(number)
    return np.array(blocks, dtype=np.int64)


def issue_times(days: ArrayLike) -> list[str]:
    """Names of cases by their times, days since 1970: UTC to the minute."""
    minutes = np.round(np.asarray(days, dtype=np.float64) * 1440).astype("datetime64[m]")
    return [str(time) for time in minutes]


def _plain(values: ArrayLike) -> list[float | None]:
    """As short as their digits allow."""
    found = np.asarray(values, dtype=np.float64).ravel()
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in found]
