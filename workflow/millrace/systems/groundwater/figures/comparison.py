"""Predictions against the truth: scatter, time series and error growth with lead time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
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


def scatter(
    truth: ArrayLike, prediction: ArrayLike, variable: str, unit: str, path: str | Path
) -> None:
    """Draw the density of predictions against the truth, with the 1:1 line, R² and KGE.

    Parameters
    ----------
    truth, prediction
        Physical units, of one shape; flattened.
    variable, unit
        For the axes, e.g. ``head`` and ``m``.
    path
        Where to write.
    """
    y, p = np.ravel(truth), np.ravel(prediction)
    result = scores(y, p)
    title = f"R² = {_digits(result['r2'])}     KGE = {_digits(result['kge'])}     n = {y.size:,}"
    density(y, p, variable, unit, path, title)


def most_variable(series: ArrayLike, n: int, column: ArrayLike | None = None) -> NDArray[np.intp]:
    """Find the nodes with the largest standard deviation in time.

    Parameters
    ----------
    series
        [T, N].
    n
        How many nodes are wanted.
    column
        Label of each node, e.g. its column in plan view, [N]: at most one node of each is taken,
        for the nodes above and below the most variable one would repeat its curve.

    Returns
    -------
    Indices of at most `n` nodes, the most variable first.
    """
    order = np.argsort(-np.asarray(series, dtype=np.float64).std(axis=0), kind="stable")
    if column is not None:
        _, first = np.unique(np.asarray(column)[order], return_index=True)
        order = order[np.sort(first)]
    return order[:n]


def time_series(
    time: ArrayLike,
    truth: ArrayLike,
    prediction: ArrayLike,
    labels: Sequence[str],
    variable: str,
    unit: str,
    path: str | Path,
    persistence: ArrayLike | None = None,
) -> None:
    """Draw true and predicted series of a few nodes, one panel each.

    Parameters
    ----------
    time
        In d, [T].
    truth, prediction, persistence
        Physical units, [T, n]; NaN leaves a gap.
    labels
        Title of each panel, e.g. the node and its position, [n].
    variable, unit
        For the axes.
    path
        Where to write.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    n = truth.shape[1]
    with figure(path, PAGE_WIDTH, 0.9 + 1.15 * n) as fig:
        panels = fig.subplots(n, 1, sharex=True, squeeze=False)[:, 0]
        for i, (axes, label) in enumerate(zip(panels, labels, strict=True)):
            axes.plot(time, truth[:, i], color=TRUTH, label="Truth")
            axes.plot(time, prediction[:, i], color=PREDICTION, linestyle="--", label="Prediction")
            if persistence is not None:
                axes.plot(
                    time, np.asarray(persistence)[:, i], color=PERSISTENCE, linewidth=0.9,
                    linestyle=":", label="Persistence",
                )  # fmt: skip
            axes.set_title(label)
            axes.margins(x=0.01)
        panels[-1].set_xlabel("Time (d)")
        fig.supylabel(axis_label(variable, unit), fontsize=9)
        _legend_above(fig, panels[0])


def error_by_lead(
    result: Mapping[str, Any],
    path: str | Path,
    units: Mapping[str, str] | None = None,
    lead_days: ArrayLike | None = None,
) -> None:
    """Draw the RMSE of model and persistence by lead time, one panel per variable.

    Parameters
    ----------
    result
        From `millrace.systems.groundwater.scores.FieldMetrics.result`.
    path
        Where to write.
    units
        Unit of each variable.
    lead_days
        Lead times in d, [T]; without them the axis counts steps from 1.
    """
    units = units or {}
    columns = min(2, len(result))
    rows = -(-len(result) // columns)
    with figure(path, PAGE_WIDTH if columns > 1 else 4.2, 0.5 + 2.3 * rows) as fig:
        panels = fig.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        for axes, (variable, values) in zip(panels, result.items(), strict=False):
            by_lead = values["by_lead"]
            model = np.array(by_lead["rmse"], dtype=float)
            persistence = np.array(by_lead["persistence_rmse"], dtype=float)
            lead = np.arange(1, model.size + 1) if lead_days is None else np.asarray(lead_days)
            axes.plot(lead, model, color=PREDICTION, marker="o", markersize=3.5, label="Model")
            axes.plot(
                lead, persistence, color=PERSISTENCE, marker="s", markersize=3.5, linestyle="--",
                label="Persistence",
            )  # fmt: skip
            axes.set_title(axis_label(variable, ""))
            axes.set_ylabel(axis_label("RMSE", units.get(variable, "")))
            axes.set_xlabel("Lead (step)" if lead_days is None else "Lead time (d)")
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(Thousands())
            if lead_days is None:
                axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in panels[len(result) :]:
            axes.remove()
        _legend_above(fig, panels[0])


def ensemble_by_lead(
    result: Mapping[str, Any], path: str | Path, units: Mapping[str, str] | None = None
) -> None:
    """Draw error and spread of an ensemble by lead step, one panel per variable.

    Parameters
    ----------
    result
        From `millrace.systems.groundwater.ensemble.EnsembleMetrics.result`.
    path
        Where to write.
    units
        Unit of each variable.
    """
    curves = {
        "rmse": ("RMSE of the mean", {"color": PREDICTION, "marker": "o"}),
        "spread": ("Spread", {"color": TRUTH, "marker": "^", "linestyle": "-."}),
        "crps": ("CRPS", {"color": REFERENCE_LINE, "marker": "d", "linestyle": ":"}),
        "persistence_rmse": (
            "RMSE of persistence",
            {"color": PERSISTENCE, "marker": "s", "linestyle": "--"},
        ),
    }
    with figure(path, PAGE_WIDTH if len(result) > 1 else 4.8, 2.9) as fig:
        panels = fig.subplots(1, len(result), squeeze=False)[0]
        for axes, (variable, values) in zip(panels, result.items(), strict=True):
            for name, (label, look) in curves.items():
                values_T = np.array(values["by_lead"][name], dtype=float)
                lead = np.arange(1, values_T.size + 1)
                axes.plot(lead, values_T, label=label, markersize=3.5, **look)
            ratio = values["spread_skill"]
            title = axis_label(variable, "")
            axes.set_title(title if ratio is None else f"{title}: spread / error {ratio:.2f}")
            axes.set_ylabel((units or {}).get(variable, ""))
            axes.set_xlabel("Lead (step)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlim(0.5, lead[-1] + 0.5)
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(Thousands())
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        _legend_above(fig, panels[0])


def error_over_time(
    time: ArrayLike,
    rmse: ArrayLike,
    persistence: ArrayLike,
    variables: Sequence[str],
    units: Sequence[str],
    path: str | Path,
) -> None:
    """Draw the RMSE of model and persistence by the time of the forecast, one panel per variable.

    Parameters
    ----------
    time
        When forecasts begin, in d, [W].
    rmse, persistence
        Physical units, [W, V]; NaN leaves a gap.
    variables, units
        V of each.
    path
        Where to write.
    """
    model, baseline = np.asarray(rmse), np.asarray(persistence)
    with figure(path, PAGE_WIDTH, 0.9 + 1.6 * len(variables)) as fig:
        panels = fig.subplots(len(variables), 1, sharex=True, squeeze=False)[:, 0]
        for v, (axes, name, unit) in enumerate(zip(panels, variables, units, strict=True)):
            axes.plot(time, model[:, v], color=PREDICTION, label="Model")
            axes.plot(
                time, baseline[:, v], color=PERSISTENCE, linewidth=0.9, linestyle="--",
                label="Persistence",
            )  # fmt: skip
            axes.set_title(axis_label(name, ""))
            axes.set_ylabel(axis_label("RMSE", unit))
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(Thousands())
            axes.margins(x=0.01)
        panels[-1].set_xlabel("Time of the forecast (d)")
        _legend_above(fig, panels[0])


def _legend_above(fig: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _digits(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
