"""Fields on the sphere, in the equal-area projection of Mollweide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from millrace.figures.style import (
    ERROR_MAP,
    FIELD_MAP,
    PAGE_WIDTH,
    REFERENCE_LINE,
    axis_label,
    figure,
)
from millrace.systems.downscaling.icon_source import Floats, unit_vectors

_HEIGHT = 240
"""Pixels of a map from pole to pole."""


@dataclass(frozen=True)
class Panel:
    """A field [N], and the group of panels whose colours it shares."""

    title: str
    values: ArrayLike
    group: str = "field"


def sphere_maps(
    centres: ArrayLike,
    panels: Sequence[Panel],
    labels: Mapping[str, tuple[str, str]],
    path: str | Path,
    land: ArrayLike | None = None,
) -> None:
    """Draw fields on the cells of a grid, two in a row; a pixel has the value of the nearest centre.

    ``centres`` are unit vectors, [N, 3]. ``labels`` are name and unit of each group of panels, for its
    colour bar. ``land`` is the share of it, [N]: coasts are drawn at one half.
    """
    cell, seen = _pixels(np.asarray(centres, dtype=np.float64))
    coast = None if land is None else np.where(seen, np.asarray(land)[cell], 0)
    rows = -(-len(panels) // 2)
    with figure(path, PAGE_WIDTH, 0.4 + 1.85 * rows, layout="compressed") as fig:
        axes = fig.subplots(rows, 2, squeeze=False).ravel()
        groups = {n: [np.asarray(p.values) for p in panels if p.group == n] for n in labels}
        limits = {n: np.quantile(np.concatenate(g), (0.002, 0.998)) for n, g in groups.items()}
        for number, (one, panel) in enumerate(zip(axes, panels, strict=False)):
            low, high = limits[panel.group]
            drawn = one.imshow(
                np.where(seen, np.asarray(panel.values)[cell], np.nan), extent=(-2, 2, -1, 1),
                origin="lower", cmap=FIELD_MAP if panel.group == "field" else ERROR_MAP,
                vmin=low, vmax=max(high, low + 1e-12),
            )  # fmt: skip
            _frame(one, panel.title, coast)
            # The panel on the left has the colours of the one beside it, or of those above.
            if number % 2 or number == len(panels) - 1:
                fig.colorbar(
                    drawn, ax=one, label=axis_label(*labels[panel.group]), extend="both",
                    shrink=0.85, aspect=18,
                )  # fmt: skip
        for one in axes[len(panels) :]:
            one.remove()


def inverse_mollweide(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Longitude and latitude (rad) at places of the ellipse |x| <= 2, |y| <= 1; NaN outside.

    Snyder (1987), Map projections: a working manual, p. 251.
    """
    inside = x**2 / 4 + y**2 <= 1
    angle = np.arcsin(np.where(inside, y, np.nan))
    latitude = np.arcsin(np.clip((2 * angle + np.sin(2 * angle)) / np.pi, -1, 1))
    longitude = np.pi * x / (2 * np.maximum(np.cos(angle), 1e-12))
    return np.clip(longitude, -np.pi, np.pi), latitude


def _pixels(centres_N3: Floats) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Nearest cell of each pixel, and which pixels are on the globe."""
    step = 2 / _HEIGHT
    x, y = np.meshgrid(np.arange(-2 + step / 2, 2, step), np.arange(-1 + step / 2, 1, step))
    lon, lat = inverse_mollweide(x, y)
    seen = np.isfinite(lat)
    place = unit_vectors(np.nan_to_num(lon), np.nan_to_num(lat))
    return cKDTree(centres_N3).query(place)[1], seen


def _frame(axes: Axes, title: str, coast: Floats | None) -> None:
    axes.set_title(title)
    axes.axis("off")
    turn = np.linspace(0, 2 * np.pi, 200)
    axes.plot(2 * np.cos(turn), np.sin(turn), color=REFERENCE_LINE, linewidth=0.8)
    if coast is not None and np.ptp(coast) > 0:
        axes.contour(coast, levels=[0.5], colors="black", linewidths=0.4, extent=(-2, 2, -1, 1))
