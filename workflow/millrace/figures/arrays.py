"""Fields on a grid: maps, lines and all values against the ground truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from millrace.figures.style import (
    DIFFERENCE_MAP,
    FIELD_MAP,
    PAGE_WIDTH,
    PREDICTION,
    REFERENCE_LINE,
    TRUTH,
    Thousands,
    axis_label,
    figure,
)

Axis = tuple[str, NDArray[Any], str]
"""Name, values and unit of a coordinate."""


@dataclass(frozen=True, eq=False)
class Example:
    """Fields of one sample in physical units, each of the shape of the grid."""

    given: Mapping[str, tuple[NDArray[Any], str]]
    """Some of what the model was given, with units, by name."""
    truth: NDArray[Any]
    prediction: NDArray[Any]


def field_maps(
    axes: Sequence[Axis],
    examples: Mapping[str, Example],
    variable: str,
    unit: str,
    path: str | Path,
) -> None:
    """Draw maps of samples, one a row: what is given, ground truth, prediction and error.

    Parameters
    ----------
    axes
        Coordinates that are drawn upwards and to the right: [n] each, or [n] and [m], or both [n, m].
    examples
        By what the error of each is among all.
    variable, unit
        What is predicted.
    path
        Where to write.
    """
    (up, y, up_unit), (right, x, right_unit) = axes
    given = list(next(iter(examples.values())).given)
    aspect = "equal" if up_unit == right_unit else "auto"
    tall = float(np.clip(np.ptp(y) / np.ptp(x), 0.3, 2)) if aspect == "equal" else 1.0
    height = 0.9 + len(examples) * (0.15 + (PAGE_WIDTH - 1.6) / (len(given) + 3) * tall)
    with figure(path, PAGE_WIDTH, height, layout="compressed") as fig:
        panels = fig.subplots(
            len(examples), len(given) + 3, sharex=True, sharey=True, squeeze=False
        )
        fig.supylabel("Error of the sample", fontsize=9)
        for axes_of_panel in panels.ravel():
            axes_of_panel.set_aspect(aspect)
        titles = [*given, "ground truth", "prediction", "error"]
        for column, title in enumerate(titles):
            panels[0, column].set_title(axis_label(title, ""))
            panels[-1, column].set_xlabel(axis_label(right, right_unit))
        for column, name in enumerate(given):
            fields, unit_of_given = zip(
                *(one.given[name] for one in examples.values()), strict=True
            )
            meshes = [
                _draw_field(panel, x, y, field, _colours(fields))
                for panel, field in zip(panels[:, column], fields, strict=True)
            ]
            label = axis_label(name, unit_of_given[0])
            _colour_bar(meshes[0], panels[:, column], label, location="bottom", aspect=12)
        # Samples may differ by orders of magnitude: each has a scale of its own.
        for row, (label, example) in zip(panels, examples.items(), strict=True):
            row[0].set_ylabel(f"{label.capitalize()}\n{axis_label(up, up_unit)}")
            colours = _colours([example.truth])
            for panel, field in zip(row[-3:], (example.truth, example.prediction), strict=False):
                mesh = _draw_field(panel, x, y, field, colours)
            _colour_bar(mesh, row[-3:-1], axis_label(variable, unit), aspect=15)
            error = example.prediction - example.truth
            largest = float(np.abs(error).max()) or 1.0
            colours = {"cmap": DIFFERENCE_MAP, "vmin": -largest, "vmax": largest}
            mesh = _draw_field(row[-1], x, y, error, colours)
            _colour_bar(mesh, row[-1:], axis_label("error", unit), aspect=15)


def field_lines(
    axis: Axis, examples: Mapping[str, Example], variable: str, unit: str, path: str | Path
) -> None:
    """Draw profiles of samples, one a column: what is given above ground truth and prediction.

    Parameters
    ----------
    axis
        Coordinate of the cells.
    examples, variable, unit, path
        See `field_maps`.
    """
    name, x, x_unit = axis
    given = list(next(iter(examples.values())).given)
    with figure(path, PAGE_WIDTH, 0.8 + 1.5 * (len(given) + 1)) as fig:
        panels = fig.subplots(
            len(given) + 1, len(examples), sharex=True, sharey="row", squeeze=False
        )
        for column, (label, example) in enumerate(examples.items()):
            panels[0, column].set_title(f"{label.capitalize()} error")
            panels[-1, column].set_xlabel(axis_label(name, x_unit))
            for row, (what, (values, one)) in enumerate(example.given.items()):
                panels[row, column].plot(x, values, color=REFERENCE_LINE)
                panels[row, 0].set_ylabel(axis_label(what, one))
            last = panels[-1, column]
            last.plot(x, example.truth, color=TRUTH, label="Ground truth")
            last.plot(x, example.prediction, color=PREDICTION, linestyle="--", label="Prediction")
        panels[-1, 0].set_ylabel(axis_label(variable, unit))
        fig.align_ylabels()
        handles, labels = panels[-1, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=2)


def scatter(
    truth: NDArray[Any],
    prediction: NDArray[Any],
    variable: str,
    unit: str,
    path: str | Path,
    title: str = "",
) -> None:
    """Draw the density of predictions against the ground truth, with the 1:1 line.

    Parameters
    ----------
    truth, prediction
        Physical units, [n].
    variable, unit, path
        See `field_maps`.
    """
    low, high = min(truth.min(), prediction.min()), max(truth.max(), prediction.max())
    margin = 0.03 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    with figure(path, 4.8, 3.9, layout="compressed") as fig:
        axes = fig.add_subplot(xlim=limits, ylim=limits, aspect="equal")
        bins = axes.hexbin(
            truth, prediction, gridsize=70, bins="log", mincnt=1, extent=(*limits, *limits),
            cmap=FIELD_MAP, linewidths=0.1,
        )  # fmt: skip
        axes.plot(limits, limits, color=REFERENCE_LINE, linewidth=1, linestyle="--")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(Thousands())
        axes.set_xlabel(axis_label(f"true {variable}", unit))
        axes.set_ylabel(axis_label(f"predicted {variable}", unit))
        fig.colorbar(bins, ax=axes, label="Values per cell")
        axes.set_title(title)


def _colours(fields: Sequence[NDArray[Any]]) -> dict[str, Any]:
    return {"cmap": FIELD_MAP, "vmin": np.min(fields), "vmax": np.max(fields)}


def _colour_bar(mesh: Any, beside: Any, label: str, **options: Any) -> None:
    bar = mesh.figure.colorbar(mesh, ax=list(beside), label=label, format="%g", **options)
    bar.locator = MaxNLocator(3)


def _draw_field(
    axes: Axes, x: NDArray[Any], y: NDArray[Any], field: NDArray[Any], colours: Mapping[str, Any]
) -> Any:
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(3))
    if field.ndim == 1:
        size = min(20.0, 4000 / field.size)
        return axes.scatter(x, y, c=field, s=size, rasterized=True, linewidths=0, **colours)
    return axes.pcolormesh(x, y, field, shading="nearest", rasterized=True, **colours)
