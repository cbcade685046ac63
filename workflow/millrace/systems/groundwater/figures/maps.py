"""Plan datasets: error per node and the patches of the domain."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import Delaunay, cKDTree

from millrace.figures.style import (
    CATEGORIES,
    ERROR_MAP,
    PAGE_WIDTH,
    TRUTH,
    Thousands,
    axis_label,
    figure,
)

Floats = NDArray[np.float64]

DRAWN = 50_000
"""Columns of nodes of a panel: more are smaller than a dot, and their polygons take gigabytes."""


def error_map(
    x: ArrayLike,
    y: ArrayLike,
    error: ArrayLike,
    slice_group: ArrayLike,
    variable: str,
    unit: str,
    path: str | Path,
) -> None:
    """Draw the RMSE in time of nodes in plan view, one panel per group of slices.

    Easting, northing (m), error and group of slices of each node are [N]. Errors of a column of nodes,
    which share x and y, are combined by their root mean square, which is the RMSE of the column.
    """
    corner = float(np.min(x)), float(np.min(y))
    x, y, error = _kilometres(x), _kilometres(y), np.asarray(error, dtype=np.float64)
    group = np.asarray(slice_group)
    groups = np.unique(group)
    columns = [_columns(x[group == g], y[group == g], error[group == g]) for g in groups]
    high = np.quantile(np.concatenate([values for _, _, values in columns]), 0.995)
    with _panels(path, x, y, len(groups), corner) as (fig, panels):
        for axes, g, (column_x, column_y, values) in zip(panels, groups, columns, strict=True):
            drawn = axes.tripcolor(
                triangulation(column_x, column_y), values,
                shading="gouraud", cmap=ERROR_MAP, vmin=0, vmax=high or 1, rasterized=True,
            )  # fmt: skip
            axes.set_title(f"Slice group {g}")
        fig.colorbar(
            drawn, ax=list(panels), label=axis_label(f"RMSE of {variable}", unit), extend="max",
            format=Thousands(), aspect=30,
        )  # fmt: skip


def patch_map(
    coords: ArrayLike, patch_of_node: ArrayLike, path: str | Path, slice_group: ArrayLike
) -> None:
    """Draw the patches in plan view, one panel per group of slices, each patch with its number.

    Nodes have coordinates X, Y, Z in m, [N, 3], a patch of which they are core, and a group of slices, [N].
    Each panel shows the topmost patches of its group, and at most `DRAWN` of its columns of nodes.
    """
    x, y, z = np.asarray(coords, dtype=np.float64).T
    corner = float(x.min()), float(y.min())
    x, y = _kilometres(x), _kilometres(y)
    patch, group = np.asarray(patch_of_node), np.asarray(slice_group)
    groups = np.unique(group)
    with _panels(path, x, y, len(groups), corner) as (_, panels):
        for axes, g in zip(panels, groups, strict=True):
            column, shown = _topmost(x[group == g], y[group == g], z[group == g], patch[group == g])
            if len(column) > DRAWN:
                some = np.random.default_rng(0).choice(len(column), DRAWN, replace=False)
                column, shown = column[some], shown[some]
            mesh = triangulation(*column.T)
            present, index = np.unique(shown, return_inverse=True)
            colour = np.array(CATEGORIES)[index.ravel() % len(CATEGORIES)]
            cell, owner = control_volumes(mesh)
            axes.add_collection(
                PolyCollection(
                    list(cell), facecolors=colour[owner], edgecolors="face", linewidths=0.3
                )
            )
            axes.plot(*column.T, color=TRUTH, marker=".", markersize=1, linestyle="none", alpha=0.5)
            for number in present:
                # The medoid lies within the patch, also if the centroid does not.
                member = column[shown == number]
                at = member[np.argmin(((member - member.mean(axis=0)) ** 2).sum(axis=1))]
                axes.annotate(
                    str(number), at, ha="center", va="center", fontweight="bold",
                    path_effects=[withStroke(linewidth=2.5, foreground="white")],
                )  # fmt: skip
            axes.set_title(f"Slice group {g}")


@contextmanager
def _panels(
    path: str | Path, x: Floats, y: Floats, count: int, corner: tuple[float, float]
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Give panels of equal scale, laid out so that they fill the page width.

    Positions are in km from a ``corner``, X and Y in m.
    """
    aspect = np.ptp(y) / np.ptp(x)
    columns = 1 if count == 1 else min(count, 2 if aspect < 1.2 else 4)
    rows = -(-count // columns)
    width = PAGE_WIDTH if count > 1 else 5.0
    height = np.clip(aspect * (width - 0.8) / columns, 1.2, 5.0) + 0.6
    with figure(path, width, rows * height + 0.2, layout="compressed") as fig:
        panels = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for i, axes in enumerate(panels.ravel()):
            axes.set_aspect("equal")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            left, lowest = i % columns == 0, i + columns >= count
            axes.tick_params(labelleft=left, labelbottom=lowest)
            axes.set_ylabel("North (km)" if left else "")
            # Once is enough: narrow panels have no room for more.
            where = f"East (km), from X = {corner[0]:.0f} m, Y = {corner[1]:.0f} m"
            axes.set_xlabel(where if left and lowest else "")
        for axes in panels.ravel()[count:]:
            axes.remove()
        yield fig, list(panels.ravel()[:count])


def _columns(x: Floats, y: Floats, error: Floats) -> tuple[Floats, Floats, Floats]:
    """Root mean square of the errors of nodes above each other."""
    position, column = np.unique(np.column_stack([x, y]), axis=0, return_inverse=True)
    column = column.ravel()
    mean_square = np.bincount(column, weights=error**2) / np.bincount(column)
    return position[:, 0], position[:, 1], np.sqrt(mean_square)


def _kilometres(x: ArrayLike) -> Floats:
    """Distances from the smallest coordinate."""
    metres = np.asarray(x, dtype=np.float64)
    return (metres - metres.min()) / 1e3


def triangulation(x: Floats, y: Floats) -> Triangulation:
    """Delaunay triangles, without those that bridge a bay or a hole.

    A triangle is left out if its longest side is far longer than the spacing of the nodes around
    it; the spacing is local because meshes are refined towards coasts and wells.
    """
    point = np.column_stack([x, y])
    triangle = Delaunay(point).simplices
    neighbour_distance, _ = cKDTree(point).query(point, k=min(7, x.size))
    spacing = np.median(neighbour_distance[:, 1:], axis=1)
    side = np.linalg.norm(point[triangle] - point[np.roll(triangle, 1, axis=1)], axis=-1)
    bridging = side.max(axis=1) > 4 * spacing[triangle].max(axis=1)
    return Triangulation(x, y, triangle, mask=bridging)


def _topmost(x: Floats, y: Floats, z: Floats, patch: NDArray[Any]) -> tuple[Floats, NDArray[Any]]:
    """Position [M, 2] of each column of nodes and the patch of its highest node, [M]."""
    order = np.argsort(-z, kind="stable")
    position = np.column_stack([x, y])[order]
    column, first = np.unique(position, axis=0, return_index=True)
    return column, patch[order][first]


def control_volumes(mesh: Triangulation) -> tuple[Floats, NDArray[np.intp]]:
    """Quarters of the median dual cells, [3 M, 4, 2], and the node that owns each, [3 M].

    A quarter joins a node, the middles of its two sides of a triangle and the triangle's centroid.
    """
    triangle = mesh.get_masked_triangles()
    corner = np.column_stack([mesh.x, mesh.y])[triangle]
    following, preceding = np.roll(corner, -1, axis=1), np.roll(corner, 1, axis=1)
    centroid = np.broadcast_to(corner.mean(axis=1, keepdims=True), corner.shape)
    cell = np.stack([corner, (corner + following) / 2, centroid, (corner + preceding) / 2], axis=2)
    return cell.reshape(-1, 4, 2), triangle.ravel()
