"""Interpolation from a layered mesh: slices of nodes, each triangulated in plan view.

Exports name the slice of a node, but no elements. Slices are triangulated here (Delaunay), and between two
slices a field is linear along the vertical, so that fields linear in X, Y and Z are reproduced exactly.

Shape suffixes: N nodes, L slices, H columns, W points of a column, M triangles.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import Delaunay, QhullError, cKDTree

from millrace.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_NEIGHBOURS = 6  # of a node in a triangulation, on average
_BRIDGE = 4.0
"""A triangle with an edge longer than this many node spacings closes a bay of the outline and is no part
of the mesh."""
_TOLERANCE = 1e-6  # m, and barycentric coordinates: points on the outline belong to the mesh


@dataclass(frozen=True, eq=False)
class _Slice:
    node: Ints
    triangulation: Delaunay
    keep_M: Bools
    spacing: Floats


@dataclass(frozen=True, eq=False)
class Columns:
    """Vertical lines through the mesh."""

    node_LH3: Ints
    weight_LH3: Floats
    """Barycentric in the triangle of each slice that holds the line."""
    z_LH: Floats
    """Elevation of each slice (m), NaN where a line misses it."""
    n_nodes: int

    @property
    def bottom_H(self) -> Floats:
        """Lowest elevation of each line (m), NaN outside the mesh."""
        return np.where(self.inside_H, np.fmin.reduce(self.z_LH), np.nan)

    @property
    def top_H(self) -> Floats:
        """Highest elevation of each line (m), NaN outside the mesh."""
        return np.where(self.inside_H, np.fmax.reduce(self.z_LH), np.nan)

    @property
    def inside_H(self) -> Bools:
        """Whether a line meets at least two slices."""
        return np.isfinite(self.z_LH).sum(axis=0) >= 2

    def interpolation(self, z_W: Floats) -> tuple[csr_array, Bools]:
        """Weights of the nodes at elevations (m) on the lines, [H * W, N], and which are inside, [H, W].

        Rows of points outside the mesh are empty.
        """
        inside_HW = np.zeros((self.z_LH.shape[1], len(z_W)), dtype=bool)
        rows, nodes, weights = [], [], []
        for h in np.flatnonzero(self.inside_H):
            layer = np.argsort(self.z_LH[:, h])[: np.isfinite(self.z_LH[:, h]).sum()]
            z_L = self.z_LH[layer, h]
            point = np.flatnonzero((z_W >= z_L[0] - _TOLERANCE) & (z_W <= z_L[-1] + _TOLERANCE))
            below = np.clip(np.searchsorted(z_L, z_W[point], "right") - 1, 0, len(z_L) - 2)
            thickness = np.maximum(z_L[below + 1] - z_L[below], 1e-12)  # layers may pinch out
            share = np.clip((z_W[point] - z_L[below]) / thickness, 0, 1)[:, None]
            for side, part in ((below, 1 - share), (below + 1, share)):
                nodes.append(self.node_LH3[layer[side], h].ravel())
                weights.append((part * self.weight_LH3[layer[side], h]).ravel())
                rows.append(np.repeat(h * len(z_W) + point, 3))
            inside_HW[h, point] = True
        shape = (inside_HW.size, self.n_nodes)
        if not rows:
            return csr_array(shape), inside_HW
        entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(nodes))
        return csr_array(entries, shape=shape), inside_HW


class LayeredMesh:
    """Nodes in slices.

    Parameters
    ----------
    coords : ndarray
        float64[N, 3] X, Y, Z (m).
    slices : ndarray
        int[N], slice of each node. Slices need not have the same nodes in plan view.

    Raises
    ------
    DataError
        There are fewer than two slices, or one cannot be triangulated.
    """

    def __init__(self, coords: Floats, slices: NDArray[np.integer]) -> None:
        # Near the origin, or the digits of projected coordinates eat those of the geometry.
        self.origin = coords[:, :2].mean(axis=0)
        self._z = coords[:, 2]
        self._plan = coords[:, :2] - self.origin
        numbers = np.unique(slices)
        if len(numbers) < 2:
            raise DataError(f"the mesh has {len(numbers)} slice(s); planes need at least 2")
        self._slices: list[_Slice] = []
        for number in numbers:
            self._slices.append(self._triangulate(int(number), np.flatnonzero(slices == number)))

    @property
    def spacing(self) -> Floats:
        """Mean distance (m) of each node to its neighbours in the slice, float64[N]."""
        spacing = np.empty(len(self._z))
        for layer in self._slices:
            spacing[layer.node] = layer.spacing
        return spacing

    @property
    def triangles(self) -> Ints:
        """Nodes of the triangles of all slices, int64[M, 3]."""
        kept = (one.node[one.triangulation.simplices[one.keep_M]] for one in self._slices)
        return np.concatenate(list(kept)).astype(np.int64)

    def covers(self, xy: Floats) -> Bools:
        """Whether the first slice holds points [H, 2] (m)."""
        return self._locate(self._slices[0], xy)[2]

    def columns(self, xy: Floats) -> Columns:
        """Vertical lines through points [H, 2] (m)."""
        located = [self._locate(layer, xy) for layer in self._slices]
        node, weight, inside = (np.stack(parts) for parts in zip(*located, strict=True))
        z_LH = np.where(inside, (weight * self._z[node]).sum(axis=2), np.nan)
        return Columns(node, weight, z_LH, len(self._z))

    def _triangulate(self, number: int, node: Ints) -> _Slice:
        plan = self._plan[node]
        # As a rule all slices have the same triangles.
        if self._slices and np.array_equal(plan, self._plan[self._slices[-1].node]):
            return replace(self._slices[-1], node=node)
        try:
            triangulation = Delaunay(plan)
        except (QhullError, ValueError) as error:
            raise DataError(
                f"slice {number} has {len(node)} node(s) that cannot be triangulated in plan view; planes "
                "need slices that extend in X and Y"
            ) from error
        distance = cKDTree(plan).query(plan, k=min(_NEIGHBOURS + 1, len(plan)))[0]
        spacing = distance[:, 1:].mean(axis=1)
        corner = plan[triangulation.simplices]
        longest = np.linalg.norm(corner - np.roll(corner, 1, axis=1), axis=2).max(axis=1)
        keep = longest <= _BRIDGE * spacing[triangulation.simplices].max(axis=1)
        return _Slice(node, triangulation, keep, spacing)

    def _locate(self, layer: _Slice, xy: Floats) -> tuple[Ints, Floats, Bools]:
        """Nodes [H, 3] and weights [H, 3] of the triangles that hold points, and which have one."""
        point = xy - self.origin
        triangle = layer.triangulation.find_simplex(point, tol=_TOLERANCE)
        inside = (triangle >= 0) & layer.keep_M[triangle]
        corner, weight = barycentric(layer.triangulation, triangle, point)
        return layer.node[corner], np.where(inside[:, None], weight, 0.0), inside


def barycentric(mesh: Delaunay, triangle: Ints, point: Floats) -> tuple[Ints, Floats]:
    """Corners [P, 3] of the triangles of points [P, 2] in the plane, and their weights [P, 3]."""
    affine = mesh.transform[triangle]
    first = np.einsum("pij,pj->pi", affine[:, :2], point - affine[:, 2])
    return mesh.simplices[triangle], np.column_stack([first, 1 - first.sum(axis=1)])
