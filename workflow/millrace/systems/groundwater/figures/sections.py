"""Vertical sections: ground truth, prediction and difference."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from millrace.figures.style import (
    DIFFERENCE_MAP,
    FIELD_MAP,
    PAGE_WIDTH,
    Thousands,
    axis_label,
    figure,
)
from millrace.systems.groundwater.sections import Floats, SectionGrid

SECTION_SIZE = (PAGE_WIDTH, 5.4)
"""Width and height of the three panels, in inches."""


def cross_section(
    s: ArrayLike,
    z: ArrayLike,
    time: float,
    truth: ArrayLike,
    prediction: ArrayLike,
    variable: str,
    unit: str,
    path: str | Path,
    ends: ArrayLike | None = None,
    issue: float | None = None,
) -> None:
    """Draw ground truth, prediction and their difference, [n], on a vertical section of scattered nodes.

    Distance along the section and elevation of the nodes, [n], are in m, e.g. from
    `millrace.systems.groundwater.sections.extract_section`. The time in d stands in the title, with that of
    the last state given, ``issue``; and below the ``ends`` of the section, X and Y in m, [2, 2].
    """
    grid = SectionGrid.around(s, z)
    truth_HW, prediction_HW = grid.interpolate(truth), grid.interpolate(prediction)
    with figure(path, *SECTION_SIZE) as fig:
        panels = SectionPanels(fig, grid, truth_HW, prediction_HW, variable, unit, ends)
        panels.show(truth_HW, prediction_HW, time, issue)


class SectionPanels:
    """The three panels of a section on an empty figure.

    Colour scales hold for all of the fields that are given, [H, W], or [F, H, W] for the frames of an
    animation; the first one is drawn.
    """

    def __init__(
        self,
        fig: Figure,
        grid: SectionGrid,
        truth: Floats,
        prediction: Floats,
        variable: str,
        unit: str,
        ends: ArrayLike | None = None,
    ) -> None:
        field_look, difference_look, extend = _colours(truth, prediction)
        self._axes = fig.subplots(3, 1, sharex=True, sharey=True)
        titles = ("Ground truth", "Prediction", "Prediction − ground truth")
        for axes, title in zip(self._axes, titles, strict=True):
            axes.set_title(title)
            axes.set_ylabel("Elevation (m)")
            axes.set_facecolor("#F2F2F2")
            axes.grid(False)
        where = ""
        if ends is not None:
            first, last = (f"X = {x:.0f}, Y = {y:.0f}" for x, y in np.asarray(ends))
            where = f", from {first} to {last}"
        axes.set_xlabel(f"Distance along the section (m){where}")
        fields = [field.reshape(-1, *grid.inside.shape)[0] for field in (truth, prediction)]
        self._meshes = [
            axes.pcolormesh(grid.s, grid.z, field, shading="nearest", rasterized=True, **look)
            for axes, field, look in zip(
                self._axes, (*fields, fields[1] - fields[0]), (field_look, field_look, difference_look),
                strict=True,
            )
        ]  # fmt: skip
        for mesh, panels, name, ends, aspect in (
            (self._meshes[0], self._axes[:2], variable, extend, 30),
            (self._meshes[2], self._axes[2], "difference", "both", 13),
        ):
            label = axis_label(name, unit)
            fig.colorbar(
                mesh, ax=panels, label=label, extend=ends, format=Thousands(), aspect=aspect
            )

    def show(self, truth: Floats, prediction: Floats, time: float, issue: float | None) -> None:
        """Show fields [H, W] of a time (d), as forecast at an ``issue``, in the same colours."""
        fields = (truth, prediction, prediction - truth)
        for mesh, field in zip(self._meshes, fields, strict=True):
            mesh.set_array(field)
        issued = "" if issue is None else f", issued at {issue:,.2f} d"
        self._time = self._axes[0].set_title(f"{time:,.2f} d{issued}", loc="right")

    @property
    def moving(self) -> list[Artist]:
        """What `show` changes, and the spines, which lie above the fields."""
        spines = [spine for axes in self._axes for spine in axes.spines.values()]
        return [*self._meshes, *spines, self._time]


def _colours(truth: Floats, prediction: Floats) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Look of fields and difference, and ends of the colour bar of the fields.

    The fields have the range of the ground truth; that of the difference is symmetric about zero.
    """
    low, high = np.nanmin(truth), np.nanmax(truth)
    overshoot = (bool(np.nanmin(prediction) < low), bool(np.nanmax(prediction) > high))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    if low == high:
        low, high = low - 0.5, high + 0.5
    # A few cells at a sharp front must not bleach the rest.
    largest = np.nanquantile(np.abs(prediction - truth), 0.995) or 1e-6 * max(abs(low), abs(high))
    return (
        {"cmap": FIELD_MAP, "vmin": low, "vmax": high},
        {"cmap": DIFFERENCE_MAP, "vmin": -largest, "vmax": largest},
        extend.get(overshoot, "neither"),
    )
