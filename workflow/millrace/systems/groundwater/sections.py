"""Vertical sections through scattered nodes: selection along a transect and interpolation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import Delaunay

from millrace.errors import ConfigError
from millrace.systems.groundwater.layered_mesh import barycentric

Floats = NDArray[np.float64]


def extract_section(
    coords: ArrayLike, start: Sequence[float], end: Sequence[float], width: float
) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Select the nodes in a corridor of some full width (m) around a straight transect.

    Coordinates are X, Y, Z (m), [N, 3]; end points are X, Y (m). Raises `ConfigError` if the transect has
    no length, or fewer than three nodes lie in the corridor.

    Returns
    -------
    node : [n] indices into `coords`, by distance along the transect, then by elevation
    s : [n] distance from `start` along the transect, in m
    z : [n] elevation in m
    """
    xyz = np.asarray(coords, dtype=np.float64)
    origin = np.asarray(start, dtype=np.float64)
    direction = np.asarray(end, dtype=np.float64) - origin
    length = float(np.hypot(*direction))
    if length == 0:
        raise ConfigError(f"transect from {tuple(start)} to {tuple(end)}: give two distinct points")
    direction /= length
    offset = xyz[:, :2] - origin
    s = offset @ direction
    across = offset[:, 1] * direction[0] - offset[:, 0] * direction[1]
    # Half a millimetre of slack: end points are often typed from rounded node coordinates.
    slack = 5e-4
    inside = (np.abs(across) <= width / 2 + slack) & (s >= -slack) & (s <= length + slack)
    node = np.flatnonzero(inside)
    if node.size < 3:
        raise ConfigError(
            f"transect from {tuple(start)} to {tuple(end)}: {node.size} nodes within a corridor "
            f"{width:g} m wide, at least 3 are needed; move it into the model or widen it"
        )
    node = node[np.lexsort((xyz[node, 2], s[node]))]
    return node, s[node], xyz[node, 2]


@dataclass(frozen=True)
class SectionGrid:
    """Regular grid over a vertical section, with the weights to interpolate node values to it."""

    s: Floats
    """Distance along the section in m, [W]."""
    z: Floats
    """Elevation in m, [H], upwards."""
    inside: NDArray[np.bool_]
    """Cells within the aquifer, [H, W]."""
    node: NDArray[np.integer]
    """Corners of the triangle around each inside cell, [P, 3]."""
    weight: Floats
    """Barycentric weights of these corners, [P, 3]."""

    @classmethod
    def around(
        cls, s: ArrayLike, z: ArrayLike, shape: tuple[int, int] = (200, 400)
    ) -> "SectionGrid":
        """Build the grid, `shape` = (H, W), from scattered nodes at `s` and `z` in m, [n] each.

        Layers are metres apart and nodes tens of metres, so both axes are scaled to the unit
        interval before the Delaunay triangulation; raw metres would give slivers that join nodes of
        one layer only. Cells above the top layer or below the bottom one are outside, also where
        the surface is concave and the triangulation (which is convex) covers them.
        """
        s, z = np.asarray(s, dtype=np.float64), np.asarray(z, dtype=np.float64)
        if s.size < 3 or np.ptp(s) == 0 or np.ptp(z) == 0:
            raise ValueError("a section needs at least three nodes that span both directions")
        origin, extent = np.array([s.min(), z.min()]), np.array([np.ptp(s), np.ptp(z)])
        triangles = Delaunay((np.column_stack([s, z]) - origin) / extent)
        height, width = shape
        unit_s, unit_z = np.linspace(0, 1, width), np.linspace(0, 1, height)
        cell = np.column_stack([np.tile(unit_s, height), np.repeat(unit_z, width)])
        s_axis, z_axis = origin[0] + extent[0] * unit_s, origin[1] + extent[1] * unit_z
        top, bottom = (_envelope(s, z, s_axis, upper) for upper in (True, False))
        # Half a cell of slack, or the top layer itself would be cut.
        slack = 0.5 * extent[1] / (height - 1)
        between = (z_axis[:, None] <= top + slack) & (z_axis[:, None] >= bottom - slack)
        # The tolerance keeps cells that lie on the hull.
        simplex = triangles.find_simplex(cell, tol=1e-9)
        inside = between & (simplex >= 0).reshape(shape)
        chosen = inside.ravel()
        node, weight = barycentric(triangles, simplex[chosen], cell[chosen])
        return cls(s=s_axis, z=z_axis, inside=inside, node=node, weight=weight)

    def interpolate(self, values: ArrayLike) -> Floats:
        """Interpolate node values [..., n] linearly to the grid, [..., H, W]; NaN outside."""
        x = np.asarray(values, dtype=np.float64)
        field = np.full((*x.shape[:-1], *self.inside.shape), np.nan)
        field[..., self.inside] = (x[..., self.node] * self.weight).sum(axis=-1)
        return field


def _envelope(s: Floats, z: Floats, at: Floats, upper: bool) -> Floats:
    """Highest (or lowest) elevation of the nodes along the section, interpolated linearly."""
    # About as many intervals as columns of nodes, if there are as many columns as layers.
    count = max(2, round(np.sqrt(s.size)))
    interval = np.minimum(((s - s.min()) / np.ptp(s) * count).astype(int), count - 1)
    order = np.lexsort((-z if upper else z, interval))
    _, first = np.unique(interval[order], return_index=True)
    extreme = order[first]
    extreme = extreme[np.argsort(s[extreme])]
    return np.interp(at, s[extreme], z[extreme])
