r"""Ensembles over seeds: mean, spread, and how well the spread tells the error of the mean.

For M members :math:`x_i` and the ground truth y, the continuous ranked probability score, made fair, is

.. math:: \frac1M \sum_i |x_i - y| - \frac{1}{2 M (M - 1)} \sum_{i,j} |x_i - x_j|

(Ferro 2014, *Q. J. R. Meteorol. Soc.* 140, eq. 8; Zamo & Naveau 2018, *Math. Geosci.* 50, eq. 7): its
mean does not depend on M if the members are drawn from one distribution. For a single forecast the first
term alone is left, so that of persistence is its mean absolute error. Its unit is that of the variable;
smaller is better.

An ensemble over seeds is too sure of itself: it knows nothing of what all of its members get wrong.
`inflation` spreads its members about their mean as far as the error of the mean on validation data asks for
(Johnson & Bowler 2009, *Mon. Weather Rev.* 137, pp. 1717-1720, of whose two conditions this is the second).

Shape suffixes: M members, B windows, N points, T lead steps, V variables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scoringrules
from numpy.typing import ArrayLike, NDArray

from millrace.data.split import Split
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress
from millrace.systems.groundwater.forecast import batches, physical
from millrace.systems.groundwater.scores import FieldMetrics, ratio, skill

Floats = NDArray[np.float64]

_BATCH = 8


def crps(members: ArrayLike, truth: ArrayLike) -> Floats:
    """Continuous ranked probability score, [...], of two or more members, [M, ...]; see the module."""
    x_M, y = np.asarray(members, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    n = len(x_M)
    if n < 2:
        raise ValueError(f"{n} members: the score needs two or more")
    found: Floats = scoringrules.crps_ensemble(y, x_M, m_axis=0, estimator="fair")
    return found


class EnsembleMetrics:
    r"""Scores of an ensemble, accumulated over batches; memory does not grow with them.

    ``crps``, and ``crps_skill`` = 1 - crps / crps of persistence; ``spread``, the square root of the mean
    unbiased variance of the members; ``spread_skill`` = sqrt((M + 1) / M) spread / RMSE of the mean,
    which is 1 for members and truth of one distribution (Fortin et al. 2014, *J. Hydrometeorol.* 15, eq.
    15), below 1 if the ensemble is too sure of itself; ``member_rmse`` of each; and, for the mean of the
    members, the metrics of `FieldMetrics`.

    Parameters
    ----------
    variables : sequence of str
        Names of the V variables.
    leads, members : int
        T, and M of at least 2.
    """

    def __init__(self, variables: Sequence[str], leads: int, members: int) -> None:
        self._mean = FieldMetrics(variables, leads)
        self._count = 0
        shape = (leads, len(variables))
        self._crps_TV, self._variance_TV, self._persistence_TV = np.zeros((3, *shape))
        self._squared_MTV = np.zeros((members, *shape))

    def update(self, truth: ArrayLike, members: ArrayLike, baseline: ArrayLike) -> None:
        """Add windows in physical units: [B, N, T, V], members [M, B, N, T, V]."""
        y, x_M, last = (np.asarray(a, dtype=np.float64) for a in (truth, members, baseline))
        if len(x_M) != len(self._squared_MTV):
            raise ValueError(f"{len(x_M)} members, expected {len(self._squared_MTV)}")
        self._mean.update(y, x_M.mean(axis=0), last)
        self._count += y.shape[0] * y.shape[1]
        self._crps_TV += crps(x_M, y).sum(axis=(0, 1))
        self._variance_TV += x_M.var(axis=0, ddof=1).sum(axis=(0, 1))
        self._persistence_TV += np.abs(last - y).sum(axis=(0, 1))
        self._squared_MTV += ((x_M - y) ** 2).sum(axis=(1, 2))

    def result(self) -> dict[str, dict[str, Any]]:
        """Scores by variable, ready for JSON; what is undefined is None."""
        means = self._mean.result()
        n = len(self._squared_MTV)
        members_MV = np.sqrt(self._squared_MTV.mean(axis=1) / self._count)
        result = {}
        for v, name in enumerate(self._mean.variables):
            mean, by_lead = means[name], means[name]["by_lead"]
            score_T, variance_T, persistence_T = (
                values[:, v] / self._count
                for values in (self._crps_TV, self._variance_TV, self._persistence_TV)
            )
            spread = float(np.sqrt(variance_T.mean()))
            result[name] = {
                "members": n,
                "crps": float(score_T.mean()),
                "persistence_crps": float(persistence_T.mean()),
                "crps_skill": skill(score_T.mean(), persistence_T.mean()),
                "spread": spread,
                "spread_skill": ratio(np.sqrt((n + 1) / n) * spread, mean["rmse"]),
                "member_rmse": members_MV[:, v].tolist(),
                "mean": mean,
                "by_lead": {
                    "crps": score_T.tolist(),
                    "spread": np.sqrt(variance_T).tolist(),
                    "rmse": by_lead["rmse"],
                    "persistence_rmse": by_lead["persistence_rmse"],
                },
            }
        return result


def inflation(result: Mapping[str, Mapping[str, Any]]) -> Floats:
    """Factor on the deviations of the members from their mean, [T, V], with which ``spread_skill`` is 1.

    ``result`` is `EnsembleMetrics.result` on validation data. Where the members are equal the factor is 1.
    """
    factors = []
    for scores in result.values():
        n, by_lead = scores["members"], scores["by_lead"]
        pairs = zip(by_lead["rmse"], by_lead["spread"], strict=True)
        factors.append(
            [ratio(rmse, np.sqrt((n + 1) / n) * spread) or 1.0 for rmse, spread in pairs]
        )
    return np.array(factors).T


def forecast_ensemble(
    models: Sequence[TrainedModel],
    split: Split,
    progress: Progress | None = None,
    factor_TV: Floats | None = None,
) -> dict[str, dict[str, Any]]:
    """Score an ensemble on every window of a split, each from true states: `EnsembleMetrics.result`.

    All models take the samples of the first. ``progress`` is called with (batches done, all). With factors
    of `inflation` each variable also has ``calibrated``, with the scores of the members so spread that
    differ from those without, and the ``factor`` by lead step.
    """
    dataset = models[0].dataset
    members = [replace(model, dataset=dataset) for model in models]
    shape = dataset.config.variables, dataset.config.output_steps, len(members)
    metrics, calibrated = EnsembleMetrics(*shape), EnsembleMetrics(*shape)
    for _, _, batch in batches(dataset, split, _BATCH, progress):
        truth, last, *predicted = physical(dataset, batch, *(member(batch) for member in members))
        x_MBNTV = np.stack(predicted)
        metrics.update(truth, x_MBNTV, last)
        if factor_TV is not None:
            mean_BNTV = x_MBNTV.mean(axis=0)
            calibrated.update(truth, mean_BNTV + factor_TV * (x_MBNTV - mean_BNTV), last)
    result = metrics.result()
    if factor_TV is not None:
        for v, (name, scores) in enumerate(calibrated.result().items()):
            kept = {key: scores[key] for key in ("crps", "crps_skill", "spread", "spread_skill")}
            result[name]["calibrated"] = kept | {"factor": factor_TV[:, v].tolist()}
    return result
