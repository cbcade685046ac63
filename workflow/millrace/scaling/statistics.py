"""Medians with bootstrap intervals, and least squares for errors that are proportional to the value.

Shape suffixes: S steps, M series, K bootstrap draws, N observations, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from millrace.scaling.quantity import Floats

_CONFIDENCE = 0.95
_NORMAL_QUANTILE = float(stats.norm.ppf((1 + _CONFIDENCE) / 2))
_REWEIGHTINGS = 4


def median_of_medians(repeats: Sequence[Floats]) -> Floats:
    """Return the median over repeats of the medians over steps, [M], of arrays [M, S] (S may differ)."""
    return np.median([np.median(values_MS, axis=-1) for values_MS in repeats], axis=0)


def bootstrap(repeats: Sequence[Floats], draws: int, seed: int | Sequence[int]) -> Floats:
    """Return K ``draws`` of `median_of_medians` by bootstrap, [K, M]; the same seed gives the same ones.

    Repeats, [M, S] each, are resampled, and steps within them (Davison & Hinkley 1997, *Bootstrap Methods
    and their Application*, 3.8). The M series are resampled together, so that their ratios may be formed
    for each draw.
    """
    random = np.random.default_rng(seed)
    medians = []
    for values_MS in repeats:
        steps_KS = random.integers(values_MS.shape[1], size=(draws, values_MS.shape[1]))
        medians.append(np.stack([np.median(row[steps_KS], axis=1) for row in values_MS], axis=1))
    medians_NKM = np.stack(medians)
    picked_NK = random.integers(len(repeats), size=(len(repeats), draws))
    # A repeat that is picked twice in a draw contributes differently resampled steps.
    draw_NK = (np.arange(draws) + 97 * np.arange(len(repeats))[:, None]) % draws
    return np.median(medians_NKM[picked_NK, draw_NK], axis=0)


def welch_degrees(
    numerator_K: Floats, numerator_degrees: float, denominator_K: Floats, denominator_degrees: float
) -> float:
    """Return the degrees of freedom of a ratio of two positive quantities from their bootstrap draws, [K].

    This is the formula of Welch (1947, Biometrika 34) with the variances of the logarithms: if only one of
    the two varies, its own degrees of freedom count. 0 if one that varies has a single repeat.
    """
    sides = ((numerator_K, numerator_degrees), (denominator_K, denominator_degrees))
    terms = [(v, d) for draws_K, d in sides if (v := float(np.var(np.log(draws_K)))) > 0]
    if any(d <= 0 for _, d in terms):
        return 0.0
    if not terms:
        return float(numerator_degrees + denominator_degrees)
    # Variances are divided by their sum, because the squares of tiny ones would underflow.
    total = sum(v for v, _ in terms)
    return 1 / sum((v / total) ** 2 / d for v, d in terms)


def interval(value: float, draws_K: ArrayLike, degrees: float) -> tuple[float, float]:
    """Return the 95 % interval of a positive quantity from its bootstrap draws, [K]; it holds ``value``.

    Percentiles of three repeats are too narrow: on a logarithmic scale, they are widened by the ratio of
    the quantiles of Student's t and the normal distribution. In simulations with three repeats of 30 steps
    the interval contained the true ratio of two layouts in 94 to 100 % of the cases, whether repeats, steps
    or both vary; without widening, in 88 %. The ``degrees`` of freedom are repeats minus one, for ratios
    see `welch_degrees`; 0: a single repeat, whose interval is not widened.
    """
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = np.percentile(np.log(np.asarray(draws_K) / value), [tail, 100 - tail])
    scale = stats.t.ppf((1 + _CONFIDENCE) / 2, degrees) / _NORMAL_QUANTILE if degrees else 1.0
    return float(value * np.exp(scale * min(low, 0))), float(value * np.exp(scale * max(high, 0)))


@dataclass(frozen=True)
class LinearFit:
    """Coefficients of a linear model that is fitted to one set of observations or to many at once."""

    coefficients: Floats
    """[..., P]."""
    covariance: Floats
    """[..., P, P]; the variance of the errors is estimated from the residuals."""
    scatter: Floats
    """Standard deviation of the errors relative to the values, [...]."""
    degrees: int
    """Degrees of freedom: observations minus parameters."""

    @property
    def _quantile(self) -> float:
        """Quantile of Student's t distribution for two-sided intervals."""
        return float(stats.t.ppf((1 + _CONFIDENCE) / 2, self.degrees))

    def interval(self, p: int) -> tuple[Floats, Floats]:
        """Return the lower and upper end, [...] each, of the 95 % interval of coefficient p."""
        half = self._quantile * np.sqrt(self.covariance[..., p, p])
        return self.coefficients[..., p] - half, self.coefficients[..., p] + half

    def ratio_interval(self, p: int, q: int) -> tuple[Floats, Floats]:
        """Return the ends, [...] each, of the 95 % interval of coefficient p over coefficient q.

        By Fieller's theorem (1954, J. R. Stat. Soc. B 16), it contains all ratios r for which a t test does
        not reject p - r q = 0. This is exact for normal errors, unlike the delta method. The interval is
        unbounded if q may be 0.
        """
        t2 = self._quantile**2
        a, b = self.coefficients[..., p], self.coefficients[..., q]
        vaa, vab, vbb = (self.covariance[..., i, j] for i, j in ((p, p), (p, q), (q, q)))
        square, middle, constant = b**2 - t2 * vbb, a * b - t2 * vab, a**2 - t2 * vaa
        root = np.sqrt(np.maximum(middle**2 - square * constant, 0))
        bounded = square > 0
        safe = np.where(bounded, square, 1)
        low = np.where(bounded, (middle - root) / safe, -np.inf)
        return low, np.where(bounded, (middle + root) / safe, np.inf)


def relative_least_squares(design: ArrayLike, observed: ArrayLike) -> LinearFit:
    """Fit a linear model whose errors have a standard deviation proportional to the value.

    The ``design`` is [N, P], what was ``observed`` [..., N] and positive. The weights are the inverse
    squares of the fitted values, found by iteration: inverse squares of the observed values would pull the
    fit towards low outliers. Scatter and covariance are NaN if there are as many observations as
    coefficients.
    """
    x_NP, y = np.asarray(design, dtype=np.float64), np.asarray(observed, dtype=np.float64)
    scale_P = np.abs(x_NP).max(axis=0)
    x_NP = x_NP / scale_P
    fitted = y
    for _ in range(_REWEIGHTINGS):
        rows = x_NP / fitted[..., None]  # [..., N, P]
        normal = np.swapaxes(rows, -1, -2) @ rows
        right = (np.swapaxes(rows, -1, -2) @ (y / fitted)[..., None])[..., 0]
        coefficients = np.linalg.solve(normal, right[..., None])[..., 0]
        # A bad first guess may give values near 0 or below, which cannot serve as weights.
        fitted = np.maximum(np.einsum("np,...p->...n", x_NP, coefficients), 0.1 * y)
    degrees = x_NP.shape[0] - x_NP.shape[1]
    squares = (((y - np.einsum("np,...p->...n", x_NP, coefficients)) / fitted) ** 2).sum(axis=-1)
    variance = squares / degrees if degrees else np.full_like(squares, np.nan)
    covariance = np.linalg.inv(normal) * variance[..., None, None]
    covariance /= np.outer(scale_P, scale_P)
    return LinearFit(coefficients / scale_P, covariance, np.sqrt(variance), degrees)
