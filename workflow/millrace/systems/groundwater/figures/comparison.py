"""Predictions against the ground truth: scatter, time series and error by lead time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from millrace.figures.arrays import scatter as density
from millrace.figures.style import (
    PAGE_WIDTH,
    PERSISTENCE,
    PREDICTION,
    REFERENCE_LINE,
    TRUTH,
    Thousands,
    axis_label,
    figure,
)
from millrace.systems.groundwater.scores import scores

_MODEL = {"color": PREDICTION, "marker": "o"}
_ISSUES = 60  # forecasts whose beginnings are shown
_BASELINE = {"color": PERSISTENCE, "marker": "s", "linestyle": "--"}


def scatter(
    truth: ArrayLike,
    prediction: ArrayLike,
    variable: str,
    unit: str,
    path: str | Path,
    result: Mapping[str, Any] | None = None,
) -> None:
    """Draw the density of predictions against the ground truth, with the 1:1 line, R² and KGE.

    Where the points are a part of all values, ``result`` has the scores of all, which the title then tells.
    """
    y, p = np.ravel(truth), np.ravel(prediction)
    result = result or {**scores(y, p), "count": y.size}
    r2, kge = (
        "undefined" if result[name] is None else f"{result[name]:.4f}" for name in ("r2", "kge")
    )
    density(y, p, variable, unit, path, f"R² = {r2}     KGE = {kge}     n = {result['count']:,}")


def most_variable(series: ArrayLike, n: int, column: ArrayLike) -> NDArray[np.intp]:
    """Find the nodes with the largest standard deviation in time, the most variable first.

    Of the nodes of a series [T, N] at most ``n`` are taken, and at most one of each column (label of each
    node, [N]), for the nodes above and below the most variable one would repeat its curve.
    """
    order = np.argsort(-np.asarray(series, dtype=np.float64).std(axis=0), kind="stable")
    _, first = np.unique(np.asarray(column)[order], return_index=True)
    return order[np.sort(first)][:n]


def time_series(
    time: ArrayLike,
    truth: ArrayLike,
    prediction: ArrayLike,
    persistence: ArrayLike,
    labels: Sequence[str],
    variable: str,
    unit: str,
    path: str | Path,
    issue: ArrayLike | None = None,
) -> None:
    """Draw true and predicted series [T, n] of a few nodes over time (d), one panel each.

    Forecasts stand one after the other, each a line of its own; ``issue`` (d), [T], is the time of the last
    state given to each, which thin lines show.

    Each panel has a label as its title, e.g. the node and its position; NaN leaves a gap.
    """
    # Where one forecast ends and the next begins, nothing is drawn between them.
    given = np.zeros(len(np.asarray(time))) if issue is None else np.asarray(issue)
    begins = np.flatnonzero(np.diff(given)) + 1
    dots = {"marker": ".", "markersize": 3} if begins.size else {}
    forecast = {"color": PREDICTION, "linestyle": "--", **dots}
    baseline = {"color": PERSISTENCE, "linewidth": 0.9, "linestyle": ":", **dots}
    curves: tuple[tuple[str, ArrayLike, dict[str, Any], Any], ...] = (
        ("Ground truth", truth, {"color": TRUTH}, []),
        ("Prediction", prediction, forecast, begins),
        ("Persistence", persistence, baseline, begins),
    )
    with figure(path, PAGE_WIDTH, 0.9 + 1.15 * len(labels)) as fig:
        panels = fig.subplots(len(labels), 1, sharex=True, squeeze=False)[:, 0]
        days = np.asarray(time, dtype=float)
        for i, (axes, label) in enumerate(zip(panels, labels, strict=True)):
            for name, values, look, gaps in curves:
                series = np.insert(np.asarray(values, dtype=float)[:, i], gaps, np.nan)
                axes.plot(
                    np.insert(days, gaps, np.nan),
                    series,
                    label=name,
                    **look,
                )
            axes.set_title(label)
            axes.margins(x=0.01)
            axes.yaxis.set_major_formatter(Thousands())
        joined = ""
        if issue is not None:
            issued, ahead = np.unique(issue), np.max(np.asarray(time) - np.asarray(issue))
            joined = f"; forecasts of up to {ahead:.3g} d, one after the other"
            if len(issued) <= _ISSUES:
                look = {"color": REFERENCE_LINE, "linewidth": 0.5, "zorder": 0}
                for axes in panels:
                    low, high = axes.get_ylim()
                    axes.vlines(issued, low, high, label="Issue time", **look)
                    axes.set_ylim(low, high)
        panels[-1].set_xlabel(f"Time (d){joined}")
        fig.supylabel(axis_label(variable, unit), fontsize=9)
        _legend_above(fig, panels[0])


def error_by_lead(
    result: Mapping[str, Any], lead_days: ArrayLike, variable: str, unit: str, path: str | Path
) -> None:
    """Draw the RMSE of model and persistence by lead time (d), [T].

    ``result`` is that of the variable in `millrace.systems.groundwater.scores.FieldMetrics.result`.
    """
    curves = {"rmse": ("Model", _MODEL), "persistence_rmse": ("Persistence", _BASELINE)}
    with figure(path, 4.2, 2.8) as fig:
        axes = fig.subplots()
        _draw_by_lead(axes, lead_days, result["by_lead"], curves)
        axes.set_title(axis_label(variable, ""))
        _label_error(axes, axis_label("RMSE", unit))
        axes.set_xlabel("Lead time (d)")
        _legend_above(fig, axes)


def ensemble_by_lead(
    result: Mapping[str, Any], lead_days: ArrayLike, units: Mapping[str, str], path: str | Path
) -> None:
    """Draw error and spread of an ensemble by lead time (d), [T], one panel per variable.

    ``result`` is `millrace.systems.groundwater.ensemble.EnsembleMetrics.result`.
    """
    curves = {
        "rmse": ("RMSE of the mean", _MODEL),
        "spread": ("Spread", {"color": TRUTH, "marker": "^", "linestyle": "-."}),
        "crps": ("CRPS", {"color": REFERENCE_LINE, "marker": "d", "linestyle": ":"}),
        "persistence_rmse": ("RMSE of persistence", _BASELINE),
    }
    with figure(path, PAGE_WIDTH if len(result) > 1 else 4.8, 2.9) as fig:
        panels = fig.subplots(1, len(result), squeeze=False)[0]
        for axes, (variable, values) in zip(panels, result.items(), strict=True):
            _draw_by_lead(axes, lead_days, values["by_lead"], curves)
            ratio = values["spread_skill"]
            title = axis_label(variable, "")
            axes.set_title(title if ratio is None else f"{title}: spread / error {ratio:.2f}")
            axes.set_xlabel("Lead time (d)")
            _label_error(axes, axis_label("Error, spread, CRPS", units[variable]))
        _legend_above(fig, panels[0])


def _draw_by_lead(
    axes: Any, lead: ArrayLike, by_lead: Mapping[str, Any], curves: Mapping[str, Any]
) -> None:
    """Draw some of the scores by lead; ``curves`` are label and look of each."""
    for name, (label, look) in curves.items():
        values = np.array(by_lead[name], dtype=float)  # None becomes NaN
        axes.plot(lead, values, label=label, markersize=3.5, **look)


def _label_error(axes: Any, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(Thousands())


def _legend_above(fig: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
