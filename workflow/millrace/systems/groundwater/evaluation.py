"""Scores and figures of forecasts in time, on patches and on planes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from millrace.evaluation.base import Draw, Evaluation
from millrace.evaluation.trained_model import TrainedModel
from millrace.figures.style import attempt
from millrace.systems.base import Progress
from millrace.systems.groundwater.ensemble import forecast_ensemble, inflation
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
from millrace.systems.groundwater.forecast import Series, forecast_windows, mean_leads, rollout
from millrace.systems.groundwater.patch_file import Nodes, read_nodes
from millrace.systems.groundwater.plane_dataset import PlaneDataset
from millrace.systems.groundwater.sections import extract_section

_FRAMES = 24
_POINTS = 200_000


def evaluate(
    model: TrainedModel, files: Mapping[str, Path], progress: Progress | None = None
) -> tuple[dict[str, Any], Draw]:
    """Score forecasts on validation and test period, and a rollout; figures are by variable.

    See `millrace.evaluation.base.Evaluation`.
    """
    validation, _ = forecast_windows(model, "validation")
    test, series = forecast_windows(model, "test", progress)
    scores = {"validation": validation, "test": test, "rollout": rollout(model, "test")}
    scores["units"] = {name: model.dataset.units[name] for name in test}
    scores["cases"] = series.cases
    return scores, lambda figures: _draw(model, files, series, scores, figures)


def evaluate_together(
    models: Sequence[TrainedModel], progress: Progress | None = None
) -> tuple[dict[str, Any], Draw]:
    """Score the seeds of an experiment as an ensemble, see `millrace.systems.groundwater.ensemble`.

    The members forecast again, batch by batch: their forecasts are nowhere kept.
    """
    validation = forecast_ensemble(models, "validation")
    test = forecast_ensemble(models, "test", progress, inflation(validation))
    dataset = models[0].dataset
    units, steps = dataset.units, dataset.config.output_steps
    days = mean_leads(dataset, dataset.starts("test"), steps)
    scores = {"validation": validation, "test": test}
    return scores, lambda figure: ensemble_by_lead(test, days, units, figure)


def _draw(
    model: TrainedModel,
    files: Mapping[str, Path],
    series: Series,
    scores: Mapping[str, Any],
    figures: Path,
) -> None:
    dataset = model.dataset
    on_planes = isinstance(dataset, PlaneDataset)
    if on_planes:
        nodes = Nodes(
            dataset.cell_coords, dataset.plane_of_cell, dataset.plane_of_cell, part="plane"
        )
    else:
        nodes = read_nodes(files["patches"])
    for v, variable in enumerate(dataset.config.variables):
        folder = figures / variable
        folder.mkdir(parents=True, exist_ok=True)
        name = variable, dataset.units[variable]
        fields = (series.truth_TNV, series.prediction_TNV, series.persistence_TNV)
        truth, prediction, persistence = (field[..., v] for field in fields)
        # Enough points for the density, without drawing tens of millions of them.
        every = max(1, truth.size // _POINTS)
        points = truth.ravel()[::every], prediction.ravel()[::every]
        with attempt(folder / "scatter.png") as path:
            scatter(*points, *name, path, scores["test"][variable])
        coords = nodes.coords_N3
        column = np.unique(coords[:, :2], axis=0, return_inverse=True)[1].ravel()
        shown = most_variable(truth, 4, column)
        labels = [nodes.label(n) for n in shown]
        curves = truth[:, shown], prediction[:, shown], persistence[:, shown]
        with attempt(folder / "time_series.png") as path:
            time_series(series.time_T, *curves, labels, *name, path, series.issue_T)
        if not on_planes:  # which are lines on a map
            easting, northing, _ = coords.T
            rmse = np.sqrt(((prediction - truth) ** 2).mean(axis=0))
            with attempt(folder / "error_map.png") as path:
                error_map(easting, northing, rmse, nodes.slice_group_N, *name, path)
        with attempt(folder / "section.png"):
            _draw_section(series, truth, prediction, nodes, on_planes, name, folder)
        ahead = scores["rollout"]
        by_lead, days = ahead["variables"][variable], ahead["lead_days"]
        with attempt(folder / "rollout_error_by_lead.png") as path:
            error_by_lead(by_lead, days, *name, path)


def _draw_section(
    series: Series,
    truth: np.ndarray,
    prediction: np.ndarray,
    nodes: Nodes,
    on_planes: bool,
    name: tuple[str, str],
    folder: Path,
) -> None:
    """Draw a section in the middle of the period, and as an animation; fields are [T, N]."""
    shown, s, z = _main_section(nodes, truth, on_planes)
    truth, prediction = truth[:, shown], prediction[:, shown]
    t = len(truth) // 2
    ends = nodes.coords_N3[shown[[0, -1]], :2]
    time_T, issue_T = series.time_T, series.issue_T
    state = time_T[t], truth[t], prediction[t]
    cross_section(s, z, *state, *name, folder / "section.png", ends, issue_T[t])
    frames = np.unique(np.linspace(0, len(truth) - 1, _FRAMES).astype(int))
    states = time_T[frames], truth[frames], prediction[frames]
    section_animation(s, z, *states, *name, folder / "animation.gif", ends, issue_T[frames])


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
    n_columns = len(np.unique(coords[:, :2], axis=0))
    width = 2.5 * float(np.sqrt(np.ptp(coords[:, 0]) * np.ptp(coords[:, 1]) / n_columns))
    return extract_section(coords, start, end, width)


EVALUATION = Evaluation(evaluate, evaluate_together)
