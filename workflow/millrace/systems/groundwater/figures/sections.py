"""Vertical sections: truth, prediction and difference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from millrace.figures.style import (
    DIFFERENCE_MAP,
    FIELD_MAP,
    PAGE_WIDTH,
    Thousands,
    axis_label,
    figure,
)
from millrace.systems.groundwater.sections import SectionGrid

SECTION_SIZE = (PAGE_WIDTH, 5.4)
"""Width and height of the three panels, in inches."""


def cross_section(
    s: ArrayLike,
    z: ArrayLike,
    truth: ArrayLike,
    prediction: ArrayLike,
    variable: str,
    unit: str,
    path: str | Path,
    time: float | None = None,
) -> None:
    """Draw truth, prediction and their difference on a vertical section of scattered nodes.

    Parameters
    ----------
    s, z
        Distance along the section and elevation in m, [n], e.g. from
        `millrace.systems.groundwater.sections.extract_section`.
    truth, prediction
        Physical units, [n].
    variable, unit
        For the colour bars.
    path
        Where to write.
    time
        In d, for the title.
    """
    grid = SectionGrid.around(s, z)
    truth_HW, prediction_HW = grid.interpolate(truth), grid.interpolate(prediction)
    with figure(path, *SECTION_SIZE) as fig:
        panels = SectionPanels.draw(fig, grid, truth_HW, prediction_HW, variable, unit)
        if time is not None:
            panels.axes[0].set_title(f"{time:,.2f} d", loc="right")


@dataclass(frozen=True)
class SectionPanels:
    """The three panels of a section, which can be given the fields of another time."""

    axes: tuple[Axes, Axes, Axes]
    meshes: tuple[QuadMesh, QuadMesh, QuadMesh]

    @classmethod
    def draw(
        cls,
        fig: Figure,
        grid: SectionGrid,
        truth: NDArray[np.float64],
        prediction: NDArray[np.float64],
        variable: str,
        unit: str,
    ) -> "SectionPanels":
        """Draw the panels on an empty figure.

        Parameters
        ----------
        fig, grid
            Where to draw, and the cells of the fields.
        truth, prediction
            [H, W], or [F, H, W] for the frames of an animation: the colour scales hold for all
            frames, and the first one is drawn.
        variable, unit
            For the colour bars.
        """
        scale = _colour_scale(truth, prediction)
        panels = tuple(fig.subplots(3, 1, sharex=True, sharey=True))
        for axes, title in zip(panels, ("Truth", "Prediction", "Prediction − truth"), strict=True):
            axes.set_title(title)
            axes.set_ylabel("Elevation (m)")
            axes.set_facecolor("#F2F2F2")
            axes.grid(False)
        panels[2].set_xlabel("Distance along the section (m)")
        first = [field.reshape(-1, *grid.inside.shape)[0] for field in (truth, prediction)]
        meshes = tuple(
            axes.pcolormesh(grid.s, grid.z, field, shading="nearest", rasterized=True, **colours)
            for axes, field, colours in zip(
                panels, (*first, first[1] - first[0]), (scale.field, scale.field, scale.difference),
                strict=True,
            )
        )  # fmt: skip
        fig.colorbar(
            meshes[0], ax=panels[:2], label=axis_label(variable, unit), extend=scale.extend,
            format=Thousands(), aspect=30,
        )  # fmt: skip
        fig.colorbar(
            meshes[2], ax=panels[2], label=axis_label("difference", unit), extend="both",
            format=Thousands(), aspect=13,
        )  # fmt: skip
        return cls(panels, meshes)

    def update(
        self, truth: NDArray[np.float64], prediction: NDArray[np.float64], title: str
    ) -> None:
        """Show other fields [H, W] with the colour scales as they are."""
        for mesh, field in zip(self.meshes, (truth, prediction, prediction - truth), strict=True):
            mesh.set_array(field)
        self.axes[0].set_title(title, loc="right")


@dataclass(frozen=True)
class _ColourScale:
    field: dict[str, Any]
    difference: dict[str, Any]
    extend: str


def _colour_scale(truth: NDArray[np.float64], prediction: NDArray[np.float64]) -> _ColourScale:
    """Range of the truth for the fields; symmetric about zero for the difference."""
    low, high = np.nanmin(truth), np.nanmax(truth)
    overshoot = (bool(np.nanmin(prediction) < low), bool(np.nanmax(prediction) > high))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    if low == high:
        low, high = low - 0.5, high + 0.5
    # A few cells at a sharp front must not bleach the rest.
    largest = np.nanquantile(np.abs(prediction - truth), 0.995) or 1e-6 * max(abs(low), abs(high))
    return _ColourScale(
        field={"cmap": FIELD_MAP, "vmin": low, "vmax": high},
        difference={"cmap": DIFFERENCE_MAP, "vmin": -largest, "vmax": largest},
        extend=extend.get(overshoot, "neither"),
    )
