"""Scores of forecast fields against ground truth and persistence, accumulated over batches.

Every batch is reduced to a few moments in float64, and moments are merged pairwise (Chan, Golub &
LeVeque 1983, *The American Statistician* 37(3), extended to covariances), so that memory does not
grow with the test set, and a field with a large mean and a tiny variance loses no digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Rows of the leading axis K of the moments.
_TRUTH, _PREDICTION, _BASELINE = range(3)


@dataclass(frozen=True)
class _Moments:
    """Moments of truth, prediction and baseline (K = 3) per variable V and lead step T."""

    count: int  # values per variable
    pivot_KV: Array  # a value near the mean; means are kept relative to it
    mean_KV: Array  # mean of x - pivot
    square_KV: Array  # sum of squared deviations from the mean
    product_KV: Array  # sum of products of deviations with those of the ground truth
    error_KV: Array  # sum of x - truth
    absolute_error_KV: Array
    squared_error_KVT: Array

    @classmethod
    def of(cls, x_KVTM: Array) -> "_Moments":
        # The first value as pivot makes the moments of a constant field exactly zero.
        pivot_KV = x_KVTM[:, :, 0, 0]
        error_KVTM = x_KVTM - x_KVTM[_TRUTH]
        shifted_KVM = (x_KVTM - pivot_KV[:, :, None, None]).reshape(*pivot_KV.shape, -1)
        mean_KV = shifted_KVM.mean(axis=-1)
        deviation_KVM = shifted_KVM - mean_KV[:, :, None]
        return cls(
            count=shifted_KVM.shape[-1],
            pivot_KV=pivot_KV,
            mean_KV=mean_KV,
            square_KV=(deviation_KVM**2).sum(axis=-1),
            product_KV=(deviation_KVM * deviation_KVM[_TRUTH]).sum(axis=-1),
            error_KV=error_KVTM.sum(axis=-1).sum(axis=-1),
            absolute_error_KV=np.abs(error_KVTM).sum(axis=-1).sum(axis=-1),
            squared_error_KVT=(error_KVTM**2).sum(axis=-1),
        )

    def merged(self, other: "_Moments") -> "_Moments":
        count = self.count + other.count
        # The difference of the pivots is (nearly) exact, that of two large means would not be.
        delta_KV = (other.pivot_KV - self.pivot_KV) + (other.mean_KV - self.mean_KV)
        weight = self.count / count * other.count
        return _Moments(
            count=count,
            pivot_KV=self.pivot_KV,
            mean_KV=self.mean_KV + delta_KV * (other.count / count),
            square_KV=self.square_KV + other.square_KV + weight * delta_KV**2,
            product_KV=self.product_KV + other.product_KV + weight * delta_KV * delta_KV[_TRUTH],
            error_KV=self.error_KV + other.error_KV,
            absolute_error_KV=self.absolute_error_KV + other.absolute_error_KV,
            squared_error_KVT=self.squared_error_KVT + other.squared_error_KVT,
        )


class FieldMetrics:
    r"""Metrics per variable of predicted fields, with persistence as the baseline.

    With truth :math:`y`, prediction :math:`p`, error :math:`e = p - y`, and all means taken over
    windows, points and lead steps together:

    ===============  ============================================================================
    ``nmae``         mean\|e\| / std(y): MAE in standard deviations of the truth, the definition of
                     the reference surrogate (GW_SciML). It does not depend on the datum (heads are
                     around 0 m, so that a division by their mean has no meaning) and, unlike the
                     range, does not hang on one overshoot of the solver.
    ``relative_l2``  \|\|e\|\| / \|\|y\|\| over all values at once, not a mean of ratios per window.
    ``rmse``         sqrt(mean e²), in the unit of the variable.
    ``bias``         mean e, in the unit of the variable.
    ``r2``           1 - sum e² / sum (y - mean y)².
    ``kge``          1 - sqrt((r - 1)² + (alpha - 1)² + (beta - 1)²) (Gupta et al. 2009, J. Hydrol.
                     377, eqs. 9-10), with ``kge_r`` = correlation, ``kge_alpha`` = std(p) / std(y)
                     and ``kge_beta`` = mean(p) / mean(y). Beta depends on the datum: for heads
                     around 0 m, read ``kge_r`` and ``kge_alpha`` instead.
    ``skill``        1 - rmse / rmse of persistence: 1 is perfect, 0 no better than persistence. The
                     skill in relative L2 is the same number, for \|\|y\|\| cancels. (The other
                     common definition, with mean squares, is 1 - (1 - skill)².)
    ===============  ============================================================================

    Whatever is undefined (truth without variance, a perfect baseline, values that are not finite)
    is None, which JSON writes as null.

    Parameters
    ----------
    variables
        Names of the V variables, in the order of the last axis of the arrays.
    leads
        Number of lead steps T.
    """

    def __init__(self, variables: Sequence[str], leads: int) -> None:
        self.variables = tuple(variables)
        self.leads = leads
        self._moments: _Moments | None = None

    def update(self, truth: ArrayLike, prediction: ArrayLike, baseline: ArrayLike) -> None:
        """Add one batch of windows.

        Parameters
        ----------
        truth, prediction, baseline
            Physical units, [B, N, T, V]: windows, points, lead steps, variables. Leave out ghost
            points and cells outside the aquifer: every value counts once. B and N may differ
            between calls.

        Raises
        ------
        ValueError
            If the shapes differ from each other or from T and V.
        """
        fields = [np.asarray(field, dtype=np.float64) for field in (truth, prediction, baseline)]
        for name, field in zip(("truth", "prediction", "baseline"), fields, strict=True):
            if (
                field.ndim != 4
                or field.shape != fields[0].shape
                or field.shape[2:] != (self.leads, len(self.variables))
            ):
                raise ValueError(
                    f"{name} has shape {field.shape}, expected [B, N, T, V] with T = {self.leads}, "
                    f"V = {len(self.variables)}, the same for truth, prediction and baseline"
                )
        if fields[0].size == 0:
            return
        # Values of one variable and lead side by side: NumPy then sums them pairwise.
        x_KVTM = np.stack([f.transpose(3, 2, 0, 1).reshape(*f.shape[:1:-1], -1) for f in fields])
        with np.errstate(invalid="ignore", over="ignore"):
            moments = _Moments.of(x_KVTM)
            self._moments = moments if self._moments is None else self._moments.merged(moments)

    def result(self) -> dict[str, dict[str, Any]]:
        """Return the metrics as ``{variable: {metric: number or None}}``, ready for JSON.

        Besides the metrics of the class docstring a variable has ``count`` (values seen),
        ``persistence`` (the metrics of the baseline, without skill) and ``by_lead`` with the lists
        ``rmse``, ``persistence_rmse`` and ``skill`` over the T lead steps.

        Raises
        ------
        ValueError
            Before the first update.
        """
        moments = self._moments
        if moments is None:
            raise ValueError("no metrics before the first update")
        return {name: _variable_result(moments, v) for v, name in enumerate(self.variables)}


def scores(truth: ArrayLike, prediction: ArrayLike) -> dict[str, float | None]:
    """Metrics of `FieldMetrics`, without skill, of one prediction of any shape."""
    y, p = (np.asarray(x, dtype=np.float64).reshape(1, -1, 1, 1) for x in (truth, prediction))
    metrics = FieldMetrics(["field"], leads=1)
    metrics.update(y, p, y)
    result = metrics.result()["field"]
    return {name: result[name] for name in result["persistence"]}


def _variable_result(moments: _Moments, v: int) -> dict[str, Any]:
    leads = moments.squared_error_KVT.shape[-1]
    rmse_KT = np.sqrt(moments.squared_error_KVT[:, v] / (moments.count / leads))
    model, persistence = rmse_KT[_PREDICTION], rmse_KT[_BASELINE]
    result, baseline = (_scores(moments, k, v) for k in (_PREDICTION, _BASELINE))
    return {
        "count": moments.count,
        **result,
        "skill": skill(result["rmse"], baseline["rmse"]),
        "persistence": baseline,
        "by_lead": {
            "rmse": [_number(x) for x in model],
            "persistence_rmse": [_number(x) for x in persistence],
            "skill": [skill(m, p) for m, p in zip(model, persistence, strict=True)],
        },
    }


def _scores(moments: _Moments, k: int, v: int) -> dict[str, float | None]:
    n = moments.count
    mean_y, mean_p = (moments.pivot_KV[i, v] + moments.mean_KV[i, v] for i in (_TRUTH, k))
    std_y, std_p = (np.sqrt(moments.square_KV[i, v] / n) for i in (_TRUTH, k))
    mse = moments.squared_error_KVT[k, v].sum() / n
    r = ratio(moments.product_KV[k, v] / n, std_y * std_p)
    alpha, beta = ratio(std_p, std_y), ratio(mean_p, mean_y)
    kge = None
    if r is not None and alpha is not None and beta is not None:
        kge = 1.0 - float(np.sqrt((r - 1) ** 2 + (alpha - 1) ** 2 + (beta - 1) ** 2))
    return {
        "nmae": ratio(moments.absolute_error_KV[k, v] / n, std_y),
        "relative_l2": ratio(np.sqrt(mse), np.sqrt(std_y**2 + mean_y**2)),
        "rmse": _number(np.sqrt(mse)),
        "bias": _number(moments.error_KV[k, v] / n),
        "r2": skill(mse, std_y**2),
        "kge": kge,
        "kge_r": r,
        "kge_alpha": alpha,
        "kge_beta": beta,
    }


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Ratio as a plain number; None if it is undefined or not finite."""
    return None if numerator is None or not denominator else _number(numerator / denominator)


def skill(error: float | None, reference: float | None) -> float | None:
    """1 - error / reference; None if it is undefined or not finite."""
    unexplained = ratio(error, reference)
    return None if unexplained is None else 1.0 - unexplained
