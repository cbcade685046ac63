"""Evaluation of one run: metrics on validation and test period, and the figures of the report."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from millrace.data.joint import JointView
from millrace.data.patches import Nodes, read_nodes
from millrace.data.plane_windows import PlaneView
from millrace.data.views import Files, datasets_of
from millrace.evaluation.ensemble import forecast_ensemble
from millrace.evaluation.forecast import Series, TrainedModel, forecast_windows, rollout
from millrace.evaluation.sections import extract_section
from millrace.files import write_json
from millrace.plots import (
    cross_section,
    ensemble_by_lead,
    error_by_lead,
    error_map,
    most_variable,
    scatter,
    section_animation,
    time_series,
    training_curves,
)
from millrace.provenance import provenance

UNITS = {"head": "m", "pressure": "kPa", "mass_concentration": "mg/L"}
_FRAMES = 24
_POINTS = 200_000


def evaluate_run(
    checkpoint: Path,
    receipt: Path,
    files: Files,
    metrics: Path,
    figures: Path,
    curves: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Score a checkpoint and draw its figures.

    Parameters
    ----------
    checkpoint, receipt : Path
        Outputs of the training.
    files : dict
        Sample files by role.
    metrics : Path
        JSON to write: scores by split, rollout, what was evaluated. Of a model of several datasets these
        are the scores on the first, and ``datasets`` has those on each.
    figures : Path
        Directory to make, one folder a variable; for the first dataset.
    curves : Path
        Figure of the training to write.
    """
    described = json.loads(receipt.read_text())
    model = TrainedModel.load(checkpoint, described, files)
    views = model.view.views if isinstance(model.view, JointView) else [model.view]
    model, *others = [replace(model, view=view) for view in views]
    scores, series = _score(model, progress)
    several = {"datasets": [scores, *(_score(other)[0] for other in others)]} if others else {}
    write_json(
        metrics,
        {
            "schema": "millrace.metrics/1",
            **{
                key: described[key] for key in ("experiment", "layout", "seed", "epoch", "identity")
            },
            **scores,
            **several,
            "provenance": provenance(),
        },
    )
    ahead = scores["rollout"]
    on_planes = isinstance(model.view, PlaneView)
    nodes = _cells(model.view) if on_planes else read_nodes(datasets_of(files)[0]["patches"])
    for v, variable in enumerate(model.view.config.variables):
        folder = figures / variable
        folder.mkdir(parents=True, exist_ok=True)
        _draw_variable(series, v, variable, nodes, on_planes, folder)
        units = {variable: UNITS[variable]}
        error_by_lead(
            {variable: ahead["variables"][variable]},
            folder / "rollout_error_by_lead.png",
            units,
            ahead["lead_days"],
        )
    training_curves(described["history"], curves)


def _score(
    model: TrainedModel, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Any], Series]:
    """Scores on one dataset, and the forecasts of its test period."""
    validation, _ = forecast_windows(model, "validation")
    test, series = forecast_windows(model, "test", progress)
    scores = {"validation": validation, "test": test, "rollout": rollout(model, "test")}
    return scores, series


def evaluate_ensemble(
    checkpoints: Sequence[Path],
    receipts: Sequence[Path],
    files: Files,
    metrics: Path,
    figure: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Score the runs of an experiment and layout with all their seeds, on the first dataset.

    The members forecast again, batch by batch: their forecasts are nowhere kept.

    Parameters
    ----------
    checkpoints, receipts : sequence of Path
        Outputs of the training, one of each for every seed.
    files : dict
        Sample files by role.
    metrics : Path
        JSON to write: scores by split, see `millrace.evaluation.ensemble`.
    figure : Path
        Error of the mean and spread by lead time to draw.
    """
    described = [json.loads(receipt.read_text()) for receipt in receipts]
    models = [
        TrainedModel.load(checkpoint, receipt, files)
        for checkpoint, receipt in zip(checkpoints, described, strict=True)
    ]
    validation = forecast_ensemble(models, "validation")
    test = forecast_ensemble(models, "test", progress)
    write_json(
        metrics,
        {
            "schema": "millrace.ensemble_metrics/1",
            **{key: described[0][key] for key in ("experiment", "layout")},
            **{f"{key}s": [one[key] for one in described] for key in ("seed", "epoch")},
            "identities": [one["identity"] for one in described],
            "validation": validation,
            "test": test,
            "provenance": provenance(),
        },
    )
    ensemble_by_lead(test, figure, {name: UNITS[name] for name in test})


def _draw_variable(
    series: Series, v: int, variable: str, nodes: Nodes, on_planes: bool, folder: Path
) -> None:
    coords = nodes.coords_N3
    truth, prediction = series.truth_TNV[..., v], series.prediction_TNV[..., v]
    persistence, unit = series.persistence_TNV[..., v], UNITS[variable]
    # Enough points for the density, without drawing tens of millions of them.
    every = max(1, truth.size // _POINTS)
    scatter(
        truth.ravel()[::every], prediction.ravel()[::every], variable, unit, folder / "scatter.png"
    )
    column = np.unique(coords[:, :2], axis=0, return_inverse=True)[1].ravel()
    shown = most_variable(truth, 4, column)
    labels = [f"node {n + 1} at Z = {coords[n, 2]:.1f} m" for n in shown]
    time_series(
        series.time_T,
        truth[:, shown],
        prediction[:, shown],
        labels,
        variable,
        unit,
        folder / "time_series.png",
        persistence[:, shown],
    )
    rmse = np.sqrt(((prediction - truth) ** 2).mean(axis=0))
    if not on_planes:  # which are lines on a map
        easting, northing = coords[:, 0], coords[:, 1]
        error_map(
            easting, northing, rmse, variable, unit, folder / "error_map.png", nodes.slice_group_N
        )
    shown, s, z = _main_section(nodes, truth, on_planes)
    middle = len(truth) // 2
    cross_section(
        s,
        z,
        truth[middle, shown],
        prediction[middle, shown],
        variable,
        unit,
        folder / "section.png",
        series.time_T[middle],
    )
    frames = np.unique(np.linspace(0, len(truth) - 1, _FRAMES).astype(int))
    section_animation(
        s,
        z,
        series.time_T[frames],
        truth[np.ix_(frames, shown)],
        prediction[np.ix_(frames, shown)],
        variable,
        unit,
        folder / "animation.gif",
    )


def _cells(view: PlaneView) -> Nodes:
    """Cells of planes as nodes, each plane a group."""
    plane_N = np.repeat(np.arange(len(view.core_nodes)), [len(cells) for cells in view.core_nodes])
    return Nodes(view.cell_coords, plane_N, plane_N)


def _main_section(nodes: Nodes, truth_TN: np.ndarray, on_planes: bool) -> tuple[Any, Any, Any]:
    """Nodes of a section and their S and Z: the middle plane, or one through the patches."""
    if not on_planes:
        return _steepest_section(nodes.coords_N3, truth_TN)
    shown = np.flatnonzero(nodes.patch_N == nodes.patch_N.max() // 2)
    coords = nodes.coords_N3[shown]  # in order of S
    return shown, np.hypot(*(coords[:, :2] - coords[0, :2]).T), coords[:, 2]


def _steepest_section(coords: np.ndarray, truth_TN: np.ndarray) -> tuple[Any, Any, Any]:
    """Choose the section along the steepest change of the mean field: shore-normal on a coast."""
    centre = coords[:, :2].mean(axis=0)
    offset = coords[:, :2] - centre
    mean = truth_TN.mean(axis=0)
    slope, *_ = np.linalg.lstsq(np.c_[offset, np.ones(len(offset))], mean, rcond=None)
    direction = slope[:2] / max(float(np.hypot(*slope[:2])), 1e-30)
    along = offset @ direction
    start, end = centre + direction * along.min(), centre + direction * along.max()
    width = 2.5 * float(np.sqrt(np.ptp(coords[:, 0]) * np.ptp(coords[:, 1]) / _columns(coords)))
    return extract_section(coords, start, end, width)


def _columns(coords: np.ndarray) -> int:
    return len(np.unique(coords[:, :2], axis=0))
