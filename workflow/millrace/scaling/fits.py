r"""Laws of scaling fitted to throughput, with intervals.

With the throughput X of p ranks (samples per second) and that of one rank :math:`\lambda`:

==========  ==============================================================  =========================
law         X(p)                                                            source
==========  ==============================================================  =========================
Amdahl      :math:`\lambda p / (1 + \sigma (p - 1))`                         Amdahl 1967, AFIPS 30
Gustafson   :math:`\lambda (p - s (p - 1))`                                  Gustafson 1988, CACM 31(5)
USL         :math:`\lambda p / (1 + \sigma (p - 1) + \kappa p (p - 1))`      Gunther 2007, *Guerrilla
                                                                            Capacity Planning*, ch. 4
==========  ==============================================================  =========================

The constant :math:`\sigma` is the serial share (contention), :math:`\kappa` the cost of coherence between
pairs. The first and the third are linear in p / X, the second in X: each is a linear model with errors in
proportion to the value, and its constants are ratios of two coefficients, whose interval Fieller's theorem
gives exactly.
All constants are 0 or more: an estimate below is set to 0 and the others fitted again, and an interval is
cut at 0, which keeps its coverage because the truth is not below.

Shape suffixes: N observations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from millrace.scaling.quantity import MODELLED, REACH, Quantity, Refusal, label_at
from millrace.scaling.statistics import LinearFit, relative_least_squares

Floats = NDArray[np.float64]

AMDAHL, GUSTAFSON, USL = "Amdahl", "Gustafson", "USL"
LAWS = {"strong": (AMDAHL, USL), "weak": (GUSTAFSON, USL)}
CONSTANTS = {AMDAHL: ("sigma",), GUSTAFSON: ("s",), USL: ("sigma", "kappa")}
FEWEST_POINTS = 4
"""Distinct numbers of ranks that a fit needs."""


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
    """Standard deviation of the observations about the law, relative."""
    peak_ranks: Quantity | None
    """Of the USL: where throughput is largest, if that is within reach of the data."""
    sentence: str


def fit(law: str, ranks: ArrayLike, throughput: ArrayLike) -> Fit | Refusal:
    """Fit a law.

    Parameters
    ----------
    law : str
        One of `AMDAHL`, `GUSTAFSON`, `USL`.
    ranks, throughput : array_like
        [N] observations, one a run; samples/s.

    Returns
    -------
    Fit or Refusal
        Refused with fewer than `FEWEST_POINTS` distinct numbers of ranks.
    """
    p_N, x_N = np.asarray(ranks, dtype=np.float64), np.asarray(throughput, dtype=np.float64)
    distinct = tuple(sorted({int(p) for p in p_N}))
    if len(distinct) < FEWEST_POINTS:
        return Refusal(
            f"fit of {law}",
            f"{len(distinct)} distinct numbers of ranks were measured ({_listed(distinct)}), and a fit "
            f"needs {FEWEST_POINTS}",
        )
    if len(p_N) <= len(CONSTANTS[law]) + 1:
        return Refusal(f"fit of {law}", "there are no more runs than constants: measure repeats")
    values, low, high, single, linear = estimate(law, p_N, x_N)
    constants = {
        name: Quantity(float(values[i]), "1", MODELLED, float(low[i]), float(high[i]))
        for i, name in enumerate(CONSTANTS[law])
    }
    peak = _peak(constants, distinct) if law == USL else None
    return Fit(
        law,
        constants,
        Quantity(float(single), "samples/s", MODELLED),
        distinct,
        len(p_N),
        float(linear.scatter),
        peak,
        _sentence(law, constants, peak, distinct),
    )


def estimate(
    law: str, ranks: Floats, throughput: Floats
) -> tuple[Floats, Floats, Floats, Floats, LinearFit]:
    """Estimates and intervals of a law, for one series of throughput [N] or many [..., N].

    Returns
    -------
    constants, low, high : ndarray
        [..., number of constants].
    single : ndarray
        λ, [...].
    linear : LinearFit
        The unconstrained fit behind them.
    """
    design, observed, sign = _linear(law, ranks, throughput)
    free = relative_least_squares(design, observed)
    count = len(CONSTANTS[law])
    bounds = [free.ratio_interval(i + 1, 0) for i in range(count)]
    if sign < 0:
        bounds = [(-high, -low) for low, high in bounds]
    low, high = (np.stack(side, axis=-1).clip(min=0) for side in zip(*bounds, strict=True))
    constants, single = _constrained(design, observed, free, sign)
    # With the other constant set to 0, an estimate may leave its own interval.
    low, high = np.minimum(low, constants), np.maximum(high, constants)
    if law != GUSTAFSON:
        single = 1 / single
    return constants, low, high, single, free


def throughput_at(law: Fit, ranks: int) -> Quantity | Refusal:
    """Throughput that a fitted law gives for a number of ranks, samples/s.

    Refused beyond `REACH` times the largest measured number.
    """
    label = label_at(ranks, law.ranks)
    if label is None:
        return Refusal(
            f"{law.law} at {ranks} ranks",
            f"that is beyond {REACH:g} times the largest measured number, {law.ranks[-1]}",
        )
    value = evaluate(law, ranks)
    return Quantity(float(value), "samples/s", label)


def evaluate(law: Fit, ranks: ArrayLike) -> Floats:
    """Throughput of a fitted law, for drawing: the caller stays within its reach."""
    p = np.asarray(ranks, dtype=np.float64)
    constants = {name: constant.value for name, constant in law.constants.items()}
    if law.law == GUSTAFSON:
        return law.single.value * (p - constants["s"] * (p - 1))
    slowing = 1 + constants["sigma"] * (p - 1) + constants.get("kappa", 0.0) * p * (p - 1)
    return law.single.value * p / slowing


def _linear(law: str, p_N: Floats, x: Floats) -> tuple[Floats, Floats, int]:
    """Design [N, P], observations [..., N], and the sign between coefficient ratios and constants."""
    if law == GUSTAFSON:
        return np.stack([p_N, p_N - 1], axis=1), x, -1
    columns = [np.ones_like(p_N), p_N - 1]
    if law == USL:
        columns.append(p_N * (p_N - 1))
    return np.stack(columns, axis=1), p_N / x, 1


def _constrained(
    design: Floats, observed: Floats, free: LinearFit, sign: int
) -> tuple[Floats, Floats]:
    """Constants of 0 or more, [..., C], and the first coefficient, [...].

    There are at most two constants, so all sets of them that may be 0 are fitted and the best admissible
    one is taken.
    """
    count = design.shape[1] - 1
    shape = observed.shape[:-1]
    best = np.full(shape, np.inf)
    constants, single = np.zeros((*shape, count)), np.zeros(shape)
    for kept in _subsets(count):
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


def _subsets(count: int) -> Sequence[tuple[int, ...]]:
    return [(), (0,)] if count == 1 else [(), (0,), (1,), (0, 1)]


def _peak(constants: dict[str, Quantity], ranks: tuple[int, ...]) -> Quantity | None:
    """Ranks of the largest throughput: sqrt((1 - sigma) / kappa), if not beyond the reach."""
    sigma, kappa = constants["sigma"].value, constants["kappa"].value
    if kappa <= 0 or sigma >= 1:
        return None
    peak = float(np.sqrt((1 - sigma) / kappa))
    label = label_at(int(np.ceil(peak)), ranks)
    return None if label is None else Quantity(peak, "ranks", label)


def _sentence(
    law: str, constants: dict[str, Quantity], peak: Quantity | None, ranks: tuple[int, ...]
) -> str:
    def told(name: str) -> str:
        one = constants[name]
        return f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"

    if law == GUSTAFSON:
        return f"Serial share of the scaled problem: s = {told('s')}, from {_listed(ranks)} ranks."
    text = f"Serial share σ = {told('sigma')}"
    if law == USL:
        text += f", coherence κ = {told('kappa')}"
        if peak is not None:
            text += f"; throughput peaks at {peak.value:.0f} ranks ({peak.label})"
        else:
            text += f"; no peak up to {REACH * ranks[-1]:g} ranks"
    return f"{text}; from {_listed(ranks)} ranks."


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(str(p) for p in ranks)
