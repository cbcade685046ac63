"""Medians with bootstrap intervals, and least squares for errors in proportion to the value.

Shape suffixes: S steps, M series, K bootstrap draws, N observations, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

LEVEL = 0.95
_NORMAL = float(stats.norm.ppf((1 + LEVEL) / 2))


def centre(repeats: Sequence[Floats]) -> Floats:
    """Median over repeats of the medians over steps, [M], of arrays [M, S] (S may differ)."""
    return np.median([np.median(values_MS, axis=-1) for values_MS in repeats], axis=0)


def bootstrap(repeats: Sequence[Floats], draws: int, seed: int | Sequence[int]) -> Floats:
    """Draws of `centre` with repeats resampled, and steps within them (Davison & Hinkley 1997, 3.8).

    Parameters
    ----------
    repeats : sequence of ndarray
        [M, S] each; the M series keep together, so that their ratios may be formed draw by draw.
    draws : int
    seed : int or sequence of int
        The same seed gives the same draws.

    Returns
    -------
    ndarray
        [K, M].
    """
    random = np.random.default_rng(seed)
    medians = []
    for values_MS in repeats:
        steps_KS = random.integers(values_MS.shape[1], size=(draws, values_MS.shape[1]))
        medians.append(np.stack([np.median(row[steps_KS], axis=1) for row in values_MS], axis=1))
    medians_NKM = np.stack(medians)
    picked_NK = random.integers(len(repeats), size=(len(repeats), draws))
    # A repeat that is picked twice in a draw comes with other steps.
    draw_NK = (np.arange(draws) + 97 * np.arange(len(repeats))[:, None]) % draws
    return np.median(medians_NKM[picked_NK, draw_NK], axis=0)


def welch(one_K: Floats, degrees: float, other_K: Floats, other_degrees: float) -> float:
    """Degrees of freedom of a ratio of two positive quantities from their bootstrap draws.

    Welch (1947, Biometrika 34) with the variances of the logarithms: where one side scatters alone, its
    own degrees count. 0 if a side that scatters has a single repeat.
    """
    variances = [float(np.var(np.log(draws))) for draws in (one_K, other_K)]
    terms = [(v, d) for v, d in zip(variances, (degrees, other_degrees), strict=True) if v > 0]
    if any(d <= 0 for _, d in terms):
        return 0.0
    if not terms:
        return float(degrees + other_degrees)
    # A share of the variance, lest tiny squares underflow.
    total = sum(v for v, _ in terms)
    return 1 / sum((v / total) ** 2 / d for v, d in terms)


def interval(value: float, draws_K: ArrayLike, degrees: float) -> tuple[float, float]:
    """Interval of a positive quantity from its bootstrap draws.

    Percentiles of three repeats are too narrow; on a logarithmic scale, they are widened by the ratio of
    the quantiles of Student's t and the normal distribution. In simulations with three repeats of 30
    steps it held the true ratio of two layouts in 94 to 100 % of the cases, whether repeats, steps or
    both scatter; without, in 88 %.

    Parameters
    ----------
    value : float
        The estimate.
    draws_K : array_like
        [K], positive.
    degrees : float
        Repeats minus one, for ratios see `welch`; 0: a single repeat, not widened.
    """
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.log(np.asarray(draws_K) / value), [tail, 100 - tail])
    wider = stats.t.ppf((1 + LEVEL) / 2, degrees) / _NORMAL if degrees else 1.0
    return float(value * np.exp(wider * min(low, 0))), float(value * np.exp(wider * max(high, 0)))


@dataclass(frozen=True)
class LinearFit:
    """Coefficients of a linear model, for one set of observations or for many at once."""

    coefficients: Floats
    """[..., P]."""
    covariance: Floats
    """[..., P, P]; the variance of the errors is estimated from the residuals."""
    scatter: Floats
    """Standard deviation of the errors relative to the values, [...]."""
    degrees: int

    @property
    def quantile(self) -> float:
        """Of Student's t, for two-sided intervals."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.degrees))

    def interval(self, p: int) -> tuple[Floats, Floats]:
        """Interval of coefficient p, [...]."""
        half = self.quantile * np.sqrt(self.covariance[..., p, p])
        return self.coefficients[..., p] - half, self.coefficients[..., p] + half

    def ratio_interval(self, p: int, q: int) -> tuple[Floats, Floats]:
        """Interval of coefficient p over coefficient q, by Fieller's theorem, [...].

        All ratios r for which a t test does not reject p - r q = 0 (Fieller 1954, J. R. Stat. Soc. B 16):
        exact for normal errors, where the delta method is not. Unbounded if q may be 0.
        """
        t2 = self.quantile**2
        a, b = self.coefficients[..., p], self.coefficients[..., q]
        vaa, vab, vbb = (self.covariance[..., i, j] for i, j in ((p, p), (p, q), (q, q)))
        square, middle, constant = b**2 - t2 * vbb, a * b - t2 * vab, a**2 - t2 * vaa
        root = np.sqrt(np.maximum(middle**2 - square * constant, 0))
        bounded = square > 0
        safe = np.where(bounded, square, 1)
        low = np.where(bounded, (middle - root) / safe, -np.inf)
        return low, np.where(bounded, (middle + root) / safe, np.inf)


def relative_least_squares(design: ArrayLike, observed: ArrayLike, rounds: int = 4) -> LinearFit:
    """Fit a linear model whose errors have a standard deviation in proportion to the value.

    Weights are the inverse squares of the fitted values, iterated: those of the observed ones would pull
    the fit towards low outliers.

    Parameters
    ----------
    design : array_like
        [N, P].
    observed : array_like
        [..., N], positive.
    rounds : int
        Of reweighting.

    Returns
    -------
    LinearFit
        With as many observations as coefficients, its scatter and covariance are NaN.
    """
    x_NP, y = np.asarray(design, dtype=np.float64), np.asarray(observed, dtype=np.float64)
    scale_P = np.abs(x_NP).max(axis=0)
    x_NP = x_NP / scale_P
    fitted = y
    for _ in range(rounds):
        rows = x_NP / fitted[..., None]  # [..., N, P]
        normal = np.swapaxes(rows, -1, -2) @ rows
        right = (np.swapaxes(rows, -1, -2) @ (y / fitted)[..., None])[..., 0]
        coefficients = np.linalg.solve(normal, right[..., None])[..., 0]
        # A bad first guess may give values near 0 or below, which are no weights.
        fitted = np.maximum(np.einsum("np,...p->...n", x_NP, coefficients), 0.1 * y)
    degrees = x_NP.shape[0] - x_NP.shape[1]
    squares = (((y - np.einsum("np,...p->...n", x_NP, coefficients)) / fitted) ** 2).sum(axis=-1)
    variance = squares / degrees if degrees else np.full_like(squares, np.nan)
    covariance = np.linalg.inv(normal) * variance[..., None, None]
    return LinearFit(
        coefficients / scale_P,
        covariance / np.outer(scale_P, scale_P),
        np.sqrt(variance),
        degrees,
    )
