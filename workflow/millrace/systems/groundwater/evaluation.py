"""Scores and figures of forecasts in time, on patches and on planes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from millrace.evaluation.base import Evaluation
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress
from millrace.systems.groundwater.ensemble import forecast_ensemble
from millrace.systems.groundwater.figures.animation import section_animation
from millrace.systems.groundwater.figures.comparison import (
    ensemble_by_lead,
    error_by_lead,
    most_variable,
    scatter,
    time_series,
)
from millrace.systems.groundwater.figures.maps import error_map
from millrace.systems.groundwater.figures.sections import cross_section
from millrace.systems.groundwater.forecast import Series, forecast_windows, rollout
from millrace.systems.groundwater.patch_file import Nodes, read_nodes
from millrace.systems.groundwater.plane_dataset import PlaneDataset
from millrace.systems.groundwater.sections import extract_section

_FRAMES = 24
_POINTS = 200_000


def evaluate(
    model: TrainedModel,
    files: Mapping[str, Path],
    figures: Path | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score forecasts on validation and test period, and a rollout; draw a folder for each variable.

    See `millrace.evaluation.base.Evaluation`.
    """
    validation, _ = forecast_windows(model, "validation")
    test, series = forecast_windows(model, "test", progress)
    scores = {"validation": validation, "test": test, "rollout": rollout(model, "test")}
    scores["units"] = {name: model.dataset.units[name] for name in test}
    if figures is not None:
        _draw(model, files, series, scores["rollout"], figures)
    return scores


def evaluate_together(
    models: Sequence[TrainedModel], figure: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Score the seeds of an experiment as an ensemble, see `millrace.systems.groundwater.ensemble`.

    The members forecast again, batch by batch: their forecasts are nowhere kept.
    """
    validation = forecast_ensemble(models, "validation")
    test = forecast_ensemble(models, "test", progress)
    ensemble_by_lead(test, figure, models[0].dataset.units)
    return {"validation": validation, "test": test}


def _draw(
    model: TrainedModel,
    files: Mapping[str, Path],
    series: Series,
    ahead: Mapping[str, Any],
    figures: Path,
) -> None:
    on_planes = isinstance(model.dataset, PlaneDataset)
    nodes = _cells(model.dataset) if on_planes else read_nodes(files["patches"])
    for v, variable in enumerate(model.dataset.config.variables):
        folder = figures / variable
        folder.mkdir(parents=True, exist_ok=True)
        unit = model.dataset.units[variable]
        _draw_variable(series, v, variable, unit, nodes, on_planes, folder)
        error_by_lead(
            {variable: ahead["variables"][variable]},
            folder / "rollout_error_by_lead.png",
            {variable: unit},
            ahead["lead_days"],
        )


def _draw_variable(
    series: Series, v: int, variable: str, unit: str, nodes: Nodes, on_planes: bool, folder: Path
) -> None:
    coords = nodes.coords_N3
    truth, prediction = series.truth_TNV[..., v], series.prediction_TNV[..., v]
    persistence = series.persistence_TNV[..., v]
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


def _cells(dataset: PlaneDataset) -> Nodes:
    """Cells of planes as nodes, each plane a group."""
    plane_N = np.repeat(
        np.arange(len(dataset.core_nodes)), [len(cells) for cells in dataset.core_nodes]
    )
    return Nodes(dataset.cell_coords, plane_N, plane_N)


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


EVALUATION = Evaluation(evaluate, evaluate_together)
