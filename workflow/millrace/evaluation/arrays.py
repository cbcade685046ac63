"""Scores, baselines and figures of models on arrays.

Shape suffixes: B samples, T steps, V targets, K cells; of a regression N samples, P values that are given,
Q values to predict, R directions.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from millrace.data.arrays import ArrayBatch, ArrayDataset
from millrace.data.split import Split
from millrace.errors import ConfigError
from millrace.evaluation.base import Draw
from millrace.evaluation.cases import blocks_in_time, case_record
from millrace.evaluation.trained_model import TrainedModel
from millrace.figures.arrays import Example, field_lines, field_maps, scatter
from millrace.figures.style import attempt
from millrace.systems.base import Progress

Floats = NDArray[np.float64]
Forecast = Callable[[ArrayBatch, np.ndarray], Floats]
"""(samples, their starts) -> forecast in physical units, [B, T, V, K]."""

BATCH_VALUES = 1 << 22
RIDGE_SAMPLES, RIDGE_VALUES = 2000, 1 << 26
_SCATTER_VALUES = 200_000
_SHOWN_INPUTS = 2


def evaluate(
    model: TrainedModel,
    files: Mapping[str, Path],
    progress: Progress | None,
    baselines: Mapping[str, Callable[[ArrayDataset, np.ndarray], np.ndarray]],
) -> tuple[dict[str, Any], Draw]:
    """Score a model and its baselines on validation and test samples; figures are by target.

    See `millrace.evaluation.base.Evaluation`; ``baselines`` are those of
    `millrace.systems.arrays.array_kind` beside those that are supplied.
    """
    dataset: ArrayDataset = model.dataset

    forecasts: dict[str, Forecast] = {
        "model": lambda batch, _: physical(dataset, model(batch)),
        **supplied_baselines(dataset),
        **{name: _own_baseline(dataset, name, function) for name, function in baselines.items()},
    }
    validation, _ = score(dataset, "validation", forecasts, None)
    test, error_BV = score(dataset, "test", forecasts, progress)

    def draw(figures: Path) -> None:
        for v, variable in enumerate(dataset.names["targets"]):
            _draw(model, v, error_BV[:, v], figures / variable)

    names, units = dataset.names["targets"], dataset.units["targets"]
    errors = {
        name: {"rmse": (unit, error_BV[:, v])}
        for v, (name, unit) in enumerate(zip(names, units, strict=True))
    }
    starts = dataset.starts("test")
    # Windows in time overlap; other samples are independent.
    span = dataset.config.length if dataset.config.input_steps else 1
    cases = case_record([str(s) for s in starts], blocks_in_time(starts, span), errors)
    return {"validation": validation, "test": test, "cases": cases}, draw


def score(
    dataset: ArrayDataset,
    split: Split,
    forecasts: Mapping[str, Forecast],
    progress: Progress | None,
) -> tuple[dict[str, Any], Floats]:
    """Score forecasts, of which that named ``model`` is compared with the best of the others.

    Returns ``{variable: scores}`` with RMSE and relative L2 error of all ``forecasts``, and ``skill``, 1 -
    RMSE / RMSE of the best ``baseline``, where a number that is not defined is None; and the RMSE of the
    model for each sample and target, float64[B, V].
    """
    n_targets, done, count = len(dataset.names["targets"]), 0, 0
    total = int(dataset.groups(split)[0])
    square_V, error_V = np.zeros(n_targets), {name: np.zeros(n_targets) for name in forecasts}
    per_sample = []
    for starts, batch in _batches(dataset, split):
        truth = physical(dataset, batch.y_KBTV)
        square_V += np.square(truth).sum(axis=(0, 1, 3))
        count += truth[:, :, 0].size
        for name, forecast in forecasts.items():
            error = np.square(forecast(batch, starts) - truth)
            error_V[name] += error.sum(axis=(0, 1, 3))
            if name == "model":
                per_sample.append(np.sqrt(error.mean(axis=(1, 3))))
        done += len(starts)
        if progress is not None:
            progress(done, total)
    scores = {}
    for v, variable in enumerate(dataset.names["targets"]):
        rmse = {name: np.sqrt(error[v] / count) for name, error in error_V.items()}
        rivals = {name: value for name, value in rmse.items() if name != "model"}
        best = min(rivals, key=lambda name: rivals[name])
        scores[variable] = {
            "unit": dataset.units["targets"][v],
            "skill": _number(1 - _ratio(rmse["model"], rmse[best])),
            "baseline": best,
            "baseline_rmse": _number(rmse[best]),
            "forecasts": {
                name: {
                    "rmse": _number(value),
                    "relative_l2": _number(_ratio(value, np.sqrt(square_V[v] / count))),
                }
                for name, value in rmse.items()
            },
        }
    return scores, np.concatenate(per_sample)


def supplied_baselines(dataset: ArrayDataset) -> dict[str, Forecast]:
    """Forecasts that every model has to beat, fitted to training samples."""
    total: Floats | float = 0.0
    for _, batch in _batches(dataset, "train"):
        total = total + physical(dataset, batch.y_KBTV).sum(axis=0)
    mean_TVK = np.asarray(total) / dataset.groups("train")[0]
    ridge = fit_ridge(dataset)
    found: dict[str, Forecast] = {
        "mean": lambda _, starts: np.broadcast_to(mean_TVK, (len(starts), *mean_TVK.shape))
    }
    if dataset.config.input_steps:
        found["persistence"] = lambda batch, _: physical(
            dataset, (batch.y_KBTV * 0) + batch.last.flatten(2).permute(2, 0, 1).unsqueeze(2)
        )
    return found | {"ridge": ridge}


@dataclass(frozen=True, eq=False)
class Ridge:
    """Linear regression with a penalty on the squares of its coefficients, but not on the intercepts.

    It is kept as a singular value decomposition of the training samples, from which the coefficients of any
    strength of the penalty follow (Hastie, Tibshirani & Friedman 2009, The Elements of Statistical
    Learning, eq. 3.47). Of samples and given values, the smaller number decides what it costs.
    """

    mean_P: Floats
    mean_Q: Floats
    direction_PR: Floats
    singular_R: Floats
    projected_RQ: Floats
    """Targets along the left singular vectors."""

    @classmethod
    def fit(cls, x_NP: Floats, y_NQ: Floats) -> "Ridge":
        """Decompose training samples."""
        mean_P, mean_Q = x_NP.mean(axis=0), y_NQ.mean(axis=0)
        x_NP, y_NQ = x_NP - mean_P, y_NQ - mean_Q
        by_sample = len(x_NP) <= x_NP.shape[1]
        square, vectors = np.linalg.eigh(x_NP @ x_NP.T if by_sample else x_NP.T @ x_NP)
        # What is left of the mean that was taken off, or of inputs that do not vary, is rounding.
        kept = square > 1e-12 * square[-1]
        singular_R, vectors = np.sqrt(square[kept]), vectors[:, kept]
        if by_sample:
            direction_PR, left_NR = x_NP.T @ vectors / singular_R, vectors
        else:
            direction_PR, left_NR = vectors, x_NP @ vectors / singular_R
        return cls(mean_P, mean_Q, direction_PR, singular_R, left_NR.T @ y_NQ)

    def coefficients(self, penalty_Q: Floats | float) -> Floats:
        """Coefficients along the directions, [R, Q]."""
        singular_R1 = self.singular_R[:, None]
        return singular_R1 / (singular_R1**2 + penalty_Q) * self.projected_RQ

    def along(self, x_BP: Floats) -> Floats:
        """Values of samples along the directions, [B, R]."""
        return (x_BP - self.mean_P) @ self.direction_PR

    def predict(self, x_BP: Floats, penalty_Q: Floats | float) -> Floats:
        """Targets of samples, [B, Q]."""
        return self.along(x_BP) @ self.coefficients(penalty_Q) + self.mean_Q


def fit_ridge(dataset: ArrayDataset) -> Forecast:
    """Fit ridge regression from all that is given to all targets.

    The penalty of each target is the one of 19 with the least error on validation samples. Samples are up
    to 2000 of each split, evenly spread, and fewer if they hold more than 64 million values.
    """
    ridge = Ridge.fit(*gather_samples(dataset, "train"))
    x_BP, y_BQ = gather_samples(dataset, "validation")
    along_BR = ridge.along(x_BP)
    penalties = np.logspace(-8, 1, 19) * np.square(ridge.singular_R).max(initial=1e-300)
    steps, n_targets = dataset.config.output_steps, len(dataset.names["targets"])
    error_AV = []
    for penalty in penalties:
        error_BQ = along_BR @ ridge.coefficients(penalty) + ridge.mean_Q - y_BQ
        squares = np.square(error_BQ).reshape(len(error_BQ), steps, n_targets, -1)
        error_AV.append(squares.mean(axis=(0, 1, 3)))
    best_V = penalties[np.argmin(error_AV, axis=0)]
    n_cells = y_BQ.shape[1] // (steps * n_targets)
    chosen_Q = np.tile(np.repeat(best_V, n_cells), steps)

    def forecast(batch: ArrayBatch, starts: np.ndarray) -> Floats:
        values_BQ = ridge.predict(_flat(batch.x), chosen_Q)
        shape = (len(starts), steps, n_targets, n_cells)
        return _physical(dataset, values_BQ.reshape(shape))

    return forecast


def _own_baseline(
    dataset: ArrayDataset, name: str, function: Callable[[ArrayDataset, np.ndarray], np.ndarray]
) -> Forecast:
    """Forecasts of a function that a plug-in gives."""
    shape = (dataset.config.output_steps, len(dataset.names["targets"]))

    def forecast(batch: ArrayBatch, starts: np.ndarray) -> Floats:
        values, expected = function(dataset, starts), (len(starts), *shape, *dataset.grid_shape)
        if np.shape(values) != expected:
            raise ConfigError(
                f"baseline {name!r} gives the shape {np.shape(values)}, expected {expected}: "
                "samples, steps, targets and the grid"
            )
        return np.asarray(values).reshape(len(starts), *shape, -1)

    return forecast


def physical(dataset: ArrayDataset, values_KBTV: Tensor) -> Floats:
    """Normalised fields in the units of the targets, [B, T, V, K]."""
    return _physical(dataset, values_KBTV.permute(1, 2, 3, 0).double().cpu().numpy())


def _physical(dataset: ArrayDataset, values_BTVK: Floats) -> Floats:
    return values_BTVK * dataset.std[:, None] + dataset.mean[:, None]


def _flat(values: Tensor) -> Floats:
    flat: Floats = values.flatten(1).double().cpu().numpy()
    return flat


def _batches(
    dataset: ArrayDataset, split: Split, index: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, ArrayBatch]]:
    """Samples of a split, all or those of an index, and their starts."""
    starts = dataset.starts(split)
    starts = starts if index is None else starts[index]
    size = max(1, min(64, BATCH_VALUES // values_per_sample(dataset)))
    for begin in range(0, len(starts), size):
        part = starts[begin : begin + size]
        yield part, dataset.at_times(0, part)


def gather_samples(dataset: ArrayDataset, split: Split) -> tuple[Floats, Floats]:
    """What is given and what is to be predicted in samples of a split, [N, P] and [N, Q]."""
    n = int(dataset.groups(split)[0])
    most = max(2, min(n, RIDGE_SAMPLES, RIDGE_VALUES // values_per_sample(dataset)))
    index = np.linspace(0, n - 1, min(n, most)).astype(np.int64)
    parts = [(_flat(b.x), _flat(b.y)) for _, b in _batches(dataset, split, index)]
    x_NP, y_NQ = (np.concatenate(part) for part in zip(*parts, strict=True))
    return x_NP, y_NQ


def values_per_sample(dataset: ArrayDataset) -> int:
    """Numbers that a sample holds."""
    return len(dataset.core_nodes[0]) * (dataset.in_channels + dataset.out_channels)


def _draw(model: TrainedModel, v: int, error_B: Floats, folder: Path) -> None:
    """Draw what a target's samples look like, and all its values."""
    dataset: ArrayDataset = model.dataset
    variable, unit = dataset.names["targets"][v], dataset.units["targets"][v]
    starts, order = dataset.starts("test"), np.argsort(error_B)
    examples = {
        label: _example(model, v, starts[order[place]])
        for label, place in (("least", 0), ("median", len(order) // 2), ("greatest", -1))
    }
    axes = [(name, *values) for name, values in dataset.coordinates.items()]
    if len(dataset.grid_shape) == 2 or (len(dataset.grid_shape) == 1 and len(axes) == 2):
        with attempt(folder / "maps.png") as path:
            field_maps(axes[-2:], examples, variable, unit, path)
    elif len(dataset.grid_shape) == 1:
        with attempt(folder / "lines.png") as path:
            field_lines(axes[0], examples, variable, unit, path)
    pairs = [
        (physical(dataset, batch.y_KBTV)[:, :, v], physical(dataset, model(batch))[:, :, v])
        for _, batch in _batches(dataset, "test")
    ]
    truth, prediction = (np.concatenate(part).ravel() for part in zip(*pairs, strict=True))
    every = -(-truth.size // _SCATTER_VALUES)
    with attempt(folder / "scatter.png") as path:
        scatter(truth[::every], prediction[::every], variable, unit, path)


def _example(model: TrainedModel, v: int, start: int) -> Example:
    """A test sample at the last step that is predicted."""
    dataset: ArrayDataset = model.dataset
    config, batch = dataset.config, dataset.at_times(0, np.array([start]))
    shown = {}
    if config.input_steps:
        last = dataset.values("targets", np.array(start + config.input_steps - 1))[v]
        shown[f"last {dataset.names['targets'][v]}"] = (last, dataset.units["targets"][v])
    at = range(start, start + config.length)[dataset.given][-1]
    inputs = zip(dataset.names["inputs"], dataset.values("inputs", np.array(at)), strict=True)
    for (name, values), unit in zip(inputs, dataset.units["inputs"], strict=True):
        if len(shown) < _SHOWN_INPUTS:
            shown[name] = (values, unit)
    truth, prediction = (
        physical(dataset, values)[0, -1, v].reshape(dataset.grid_shape)
        for values in (batch.y_KBTV, model(batch))
    )
    return Example(shown, truth, prediction)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else np.nan


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
