r"""Laws of scaling fitted to throughput, with intervals.

With the throughput X of p ranks (samples per second) and that of one rank :math:`\lambda`:

==========  ===========================================================  ================================
law         X(p)                                                         source
==========  ===========================================================  ================================
Amdahl      :math:`\lambda p / (1 + \sigma (p - 1))`                     Amdahl 1967, AFIPS 30
Gustafson   :math:`\lambda (p - s (p - 1))`                              Gustafson 1988, CACM 31(5)
USL         :math:`\lambda p / (1 + \sigma (p - 1) + \kappa p (p - 1))`  Gunther 2007, Guerrilla Capacity
                                                                         Planning, ch. 4
==========  ===========================================================  ================================

The constant :math:`\sigma` is the serial share (contention), :math:`\kappa` the cost of coherence between
pairs of ranks. The first and the third law are linear in p / X, the second in X: each is a linear model
with errors proportional to the value. Its constants are ratios of two coefficients, and Fieller's theorem
gives their exact intervals. All constants are 0 or more: a negative estimate is set to 0 and the others are
fitted again. Intervals are cut at 0, which keeps their coverage because true constants are not negative.

Shape suffixes: N observations, C constants.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from millrace.scaling.quantity import (
    MAX_EXTRAPOLATION,
    MODELLED,
    Floats,
    Quantity,
    Refusal,
    label_at,
)
from millrace.scaling.statistics import relative_least_squares

AMDAHL, GUSTAFSON, USL = "Amdahl", "Gustafson", "USL"
LAWS = {"strong": (AMDAHL, USL), "weak": (GUSTAFSON, USL)}
"""Laws that are fitted, by mode of scaling."""
_CONSTANTS = {AMDAHL: ("sigma",), GUSTAFSON: ("s",), USL: ("sigma", "kappa")}
_MIN_POINTS = 4


@dataclass(frozen=True)
class Fit:
    """A fitted law."""

    law: str
    constants: dict[str, Quantity]
    """``sigma``, ``kappa`` or ``s``, without unit."""
    single: Quantity
    """λ: throughput of one rank, samples/s."""
    ranks: tuple[int, ...]
    """Distinct numbers of ranks, ascending."""
    observations: int
    scatter: float
    """Relative standard deviation of the observations from the law."""
    peak_ranks: Quantity | None
    """USL only: number of ranks with the largest throughput, unless it is too far beyond the data."""
    sentence: str


def fit(law: str, ranks: ArrayLike, throughput: ArrayLike) -> Fit | Refusal:
    """Fit a law, one of `AMDAHL`, `GUSTAFSON` and `USL`, to ranks and throughput (samples/s) of runs, [N].

    Refused for fewer than four distinct numbers of ranks.
    """
    p_N, x_N = np.asarray(ranks, dtype=np.float64), np.asarray(throughput, dtype=np.float64)
    distinct = tuple(sorted({int(p) for p in p_N}))
    listed = ", ".join(map(str, distinct))
    if len(distinct) < _MIN_POINTS:
        found = f"{len(distinct)} distinct numbers of ranks were measured ({listed})"
        return Refusal(f"fit of {law}", f"{found}, and a fit needs {_MIN_POINTS}")
    values, low, high, single, scatter = estimate(law, p_N, x_N)
    constants = {
        name: Quantity(float(values[i]), "1", MODELLED, float(low[i]), float(high[i]))
        for i, name in enumerate(_CONSTANTS[law])
    }
    peak = _peak(constants, distinct) if law == USL else None
    sentence = _sentence(law, constants, peak, distinct[-1]) + f" from {listed} ranks."
    one_rank = Quantity(float(single), "samples/s", MODELLED)
    return Fit(law, constants, one_rank, distinct, len(p_N), float(scatter), peak, sentence)


def estimate(
    law: str, ranks: Floats, throughput: Floats
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Estimate the constants of a law from one series of throughput [N] or from many [..., N].

    Returns the constants and the lower and upper ends of their 95 % intervals, [..., C] each; λ, samples/s,
    [...]; and the relative standard deviation of the observations from the unconstrained law, [...].
    """
    design, observed, sign = _linear(law, ranks, throughput)
    free = relative_least_squares(design, observed)
    bounds = [free.ratio_interval(i, 0) for i in range(1, design.shape[1])]
    if sign < 0:
        bounds = [(-high, -low) for low, high in bounds]
    low, high = (np.stack(side, axis=-1).clip(min=0) for side in zip(*bounds, strict=True))
    constants, single = _constrained(design, observed, sign)
    # If the other constant is set to 0, an estimate may lie outside its own interval.
    low, high = np.minimum(low, constants), np.maximum(high, constants)
    return constants, low, high, single if law == GUSTAFSON else 1 / single, free.scatter


def evaluate(law: Fit, ranks: ArrayLike) -> Floats:
    """Return the throughput, samples/s, that a fitted law predicts for numbers of ranks."""
    p = np.asarray(ranks, dtype=np.float64)
    constants = {name: constant.value for name, constant in law.constants.items()}
    if law.law == GUSTAFSON:
        return law.single.value * (p - constants["s"] * (p - 1))
    slowing = 1 + constants["sigma"] * (p - 1) + constants.get("kappa", 0.0) * p * (p - 1)
    return law.single.value * p / slowing


def _linear(law: str, p_N: Floats, x: Floats) -> tuple[Floats, Floats, int]:
    """Design [N, 1 + C], observations [..., N], and the sign between coefficient ratios and constants."""
    if law == GUSTAFSON:
        return np.stack([p_N, p_N - 1], axis=1), x, -1
    columns = [np.ones_like(p_N), p_N - 1]
    if law == USL:
        columns.append(p_N * (p_N - 1))
    return np.stack(columns, axis=1), p_N / x, 1


def _constrained(design: Floats, observed: Floats, sign: int) -> tuple[Floats, Floats]:
    """Constants of 0 or more, [..., C], and the first coefficient, [...].

    There are at most two constants: every set of them that may be 0 is fitted, and the best admissible fit
    is taken.
    """
    count = design.shape[1] - 1
    shape = observed.shape[:-1]
    best = np.full(shape, np.inf)
    constants, single = np.zeros((*shape, count)), np.zeros(shape)
    for kept in ((), (0,), (1,), (0, 1))[: 2**count]:
        fitted = relative_least_squares(design[:, [0, *(i + 1 for i in kept)]], observed)
        first = fitted.coefficients[..., 0]
        ratios = np.zeros((*shape, count))
        for position, i in enumerate(kept):
            ratios[..., i] = sign * fitted.coefficients[..., position + 1] / first
        squares = fitted.scatter**2 * fitted.degrees
        better = (ratios >= 0).all(axis=-1) & (squares < best)
        best = np.where(better, squares, best)
        single = np.where(better, first, single)
        constants = np.where(better[..., None], ratios, constants)
    return constants, single


def _peak(constants: dict[str, Quantity], ranks: tuple[int, ...]) -> Quantity | None:
    """Number of ranks with the largest throughput, sqrt((1 - sigma) / kappa); None: too far away."""
    sigma, kappa = constants["sigma"].value, constants["kappa"].value
    if kappa <= 0 or sigma >= 1:
        return None
    peak = float(np.sqrt((1 - sigma) / kappa))
    label = label_at(int(np.ceil(peak)), ranks)
    return None if label is None else Quantity(peak, "ranks", label)


def _sentence(law: str, constants: dict[str, Quantity], peak: Quantity | None, most: int) -> str:
    text = {
        name: f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"
        for name, one in constants.items()
    }
    if law == GUSTAFSON:
        return f"Serial share of the scaled problem: s = {text['s']},"
    sentence = f"Serial share σ = {text['sigma']}"
    if law == USL:
        sentence += f", coherence κ = {text['kappa']}; "
        if peak is None:
            sentence += f"no peak up to {MAX_EXTRAPOLATION * most:g} ranks"
        else:
            sentence += f"throughput peaks at {peak.value:.0f} ranks ({peak.label})"
    return f"{sentence};"
