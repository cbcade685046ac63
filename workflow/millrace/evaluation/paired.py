"""Whether two models differ: paired tests over test cases, blocks of which are drawn with replacement.

Shape suffixes: N cases, B blocks, D draws.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import bootstrap

from millrace.errors import DataError

DRAWS = 9999
LEVEL = 0.95
FEW_BLOCKS = 10
"""Intervals of fewer blocks are too narrow."""
FEWEST_BLOCKS = 6
"""Fewer blocks agree about who is better in more than one case of twenty by chance: 2 / 2⁵."""
_AT_ONCE = 1 << 22
"""Numbers of a batch of draws."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Mean errors of two runs over the same cases, A and B."""

    variable: str
    score: str
    unit: str
    mean_a: float
    mean_b: float
    difference: float
    """A - B: below 0, A is better."""
    low: float | None
    high: float | None
    """Ends of the 95 % interval; None: there is but one block."""
    cases: int
    blocks: int

    @property
    def better(self) -> str:
        """``A``, ``B``, or nothing if the interval holds 0 or there are fewer than `FEWEST_BLOCKS`."""
        if self.low is None or self.high is None or self.blocks < FEWEST_BLOCKS:
            return ""
        return "A" if self.high < 0 else "B" if self.low > 0 else ""

    def record(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self) | {"better": self.better}


def block_interval(values_N: Floats, block_N: NDArray[np.int64]) -> tuple[float, float] | None:
    """95 % interval of the mean of cases, percentiles of the bootstrap (Efron and Tibshirani 1993, ch. 8).

    Whole blocks are drawn with replacement, as many as there are. None: there is but one.
    """
    number, block_N = np.unique(block_N, return_inverse=True)
    if len(number) < 2:
        return None
    sum_B = np.bincount(block_N.ravel(), values_N)
    count_B = np.bincount(block_N.ravel()).astype(np.float64)
    found = bootstrap(
        (sum_B, count_B),
        lambda total, count, axis: total.sum(axis=axis) / count.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=DRAWS,
        confidence_level=LEVEL,
        method="percentile",
        batch=max(1, _AT_ONCE // len(number)),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    """Compare the errors of two runs, entries ``cases`` of `metrics.json`, variable by variable.

    Cases are matched by name, and those with an error in one run alone are left out. Cases that are in one
    block in either run stay together. Raises `DataError` if the runs have no case, or no score, in common.
    """
    index_a, index_b, block_N = matched(a, b)
    common = [
        (variable, score)
        for variable, scores in a["errors"].items()
        for score in scores
        if score in b["errors"].get(variable, {})
    ]
    if not common:
        raise DataError(
            f"the runs have no score of a variable in common: A has {', '.join(a['errors'])}, B has "
            f"{', '.join(b['errors'])}"
        )
    for variable, score in common:
        of_a, of_b = (one["errors"][variable][score] for one in (a, b))
        if of_a["unit"] != of_b["unit"]:
            raise DataError(
                f"{variable}: its {score} is in {of_a['unit']} in A and in {of_b['unit']} in B; give the "
                "raw files the same units"
            )
        pairs = ((of_a, index_a), (of_b, index_b))
        a_N, b_N = (np.array(of["values"], dtype=np.float64)[at] for of, at in pairs)
        known = np.isfinite(a_N) & np.isfinite(b_N)
        if not known.any():
            continue
        less_N, block = a_N[known] - b_N[known], block_N[known]
        low, high = block_interval(less_N, block) or (None, None)
        yield Difference(
            variable,
            score,
            of_a["unit"],
            mean_a=float(a_N[known].mean()),
            mean_b=float(b_N[known].mean()),
            difference=float(less_N.mean()),
            low=low,
            high=high,
            cases=int(known.sum()),
            blocks=len(np.unique(block)),
        )


def matched(
    a: Mapping[str, Any], b: Mapping[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Places of the common cases in either run, and their blocks, [N] each; raises `DataError` for none."""
    place = {name: number for number, name in enumerate(b["names"])}
    pairs = [(number, place[name]) for number, name in enumerate(a["names"]) if name in place]
    if not pairs:
        raise DataError(
            f"the runs have no test case in common: those of A are {_ends(a['names'])}, those of B "
            f"{_ends(b['names'])}; compare runs that were evaluated on the same period or scenarios"
        )
    index_a, index_b = np.array(pairs).T
    blocks = np.array(a["blocks"])[index_a], np.array(b["blocks"])[index_b]
    return index_a, index_b, _joined(*blocks)


def _joined(one_N: NDArray[np.int64], other_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Finest blocks that hold together what is together in one of two divisions."""
    offset, cases = int(one_N.max()) + 1, len(one_N)
    size = offset + int(other_N.max()) + 1
    links = coo_array((np.ones(cases), (one_N, offset + other_N)), shape=(size, size))
    labels: NDArray[np.int64] = connected_components(links, directed=False)[1].astype(np.int64)
    return labels[one_N]


def _ends(names: Sequence[str]) -> str:
    return f"{names[0]} to {names[-1]} ({len(names)})" if len(names) else "none"
