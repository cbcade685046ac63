"""Interpolation and differences on triangular grids of the sphere, as sparse matrices.

Shape suffixes: N cells, M points.
"""

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import ConvexHull, cKDTree

from millrace.systems.downscaling.icon_source import Floats, Ints

_CANDIDATES = 16
"""Triangles around a point among which the one that holds it is looked for."""
_AT_ONCE = 1 << 16


class Triangulation:
    """Triangles between scattered points of the unit sphere, [M, 3].

    They are those of the convex hull, which is the Delaunay triangulation of the sphere.
    """

    def __init__(self, points_M3: Floats) -> None:
        self._triangles, self._size = ConvexHull(points_M3).simplices, len(points_M3)
        corners = points_M3[self._triangles]
        self._inverse = np.linalg.inv(corners.swapaxes(1, 2))
        middle = corners.mean(axis=1)
        middle /= np.linalg.norm(middle, axis=1, keepdims=True)
        self._near = cKDTree(middle)

    def matrix(self, targets_N3: Floats) -> csr_array:
        """Linear interpolation between the points, [N, M]; rows sum to 1."""
        count = min(_CANDIDATES, len(self._triangles))
        near = self._near.query(targets_N3, count)[1].reshape(len(targets_N3), count)
        # A point is a sum of the corners of its triangle with weights that are not negative.
        weights = np.einsum("nkij,nj->nki", self._inverse[near], targets_N3)
        best = weights.min(axis=2).argmax(axis=1)
        chosen = np.maximum(np.take_along_axis(weights, best[:, None, None], axis=1)[:, 0], 0)
        chosen /= chosen.sum(axis=1, keepdims=True)
        columns = self._triangles[np.take_along_axis(near, best[:, None], axis=1)[:, 0]]
        rows = np.repeat(np.arange(len(targets_N3)), 3)
        shape = (len(targets_N3), self._size)
        return csr_array((chosen.ravel(), (rows, columns.ravel())), shape=shape)


def barycentric(points_M3: Floats, targets_N3: Floats) -> csr_array:
    """Linear interpolation from scattered points of the unit sphere, [N, M]; see `Triangulation`."""
    return Triangulation(points_M3).matrix(targets_N3)


def east_north(centres_N3: Floats) -> tuple[Floats, Floats]:
    """Unit vectors to the east and to the north of points, [N, 3] each."""
    east = np.cross([0.0, 0.0, 1.0], centres_N3)
    length = np.linalg.norm(east, axis=1, keepdims=True)
    east = np.where(length > 1e-12, east / np.maximum(length, 1e-12), [0.0, 1.0, 0.0])
    return east, np.cross(centres_N3, east)


def complete(neighbours_N3: Ints) -> Ints:
    """Neighbours of each cell, with the cell itself in place of one that is missing (-1)."""
    return np.where(neighbours_N3 >= 0, neighbours_N3, np.arange(len(neighbours_N3))[:, None])


def mean_distance(centres_N3: Floats, neighbours_N3: Ints) -> float:
    """Mean distance of the centres of cells that share an edge."""
    found = np.empty(neighbours_N3.shape)
    others = complete(neighbours_N3)
    for part in slices(len(found), _AT_ONCE):
        offset = offsets(centres_N3[part, None], centres_N3[others[part]])
        found[part] = np.linalg.norm(offset, axis=2)
    return float(found[neighbours_N3 >= 0].mean())


def differences(
    centres_N3: Floats, neighbours_N3: Ints, distance: float | None = None
) -> csr_array:
    """For each cell: its value, the mean difference to its neighbours, slopes to the east and north.

    These four span what a cell and its three neighbours can tell, in a frame that does not depend on
    how the neighbours are numbered (Jiang et al. 2019, Spherical CNNs on Unstructured Grids, ICLR). Slopes
    are those of the plane that fits best, per ``distance``, by default the mean one between centres.
    Neighbours that are -1 count as the cell itself. The matrix is [4 N, N]; the rows of a cell follow each
    other.
    """
    n_cells = len(centres_N3)
    own = np.arange(n_cells)
    neighbours = complete(neighbours_N3)
    offset_N32 = offsets(centres_N3[:, None], centres_N3[neighbours])
    spacing = mean_distance(centres_N3, neighbours_N3) if distance is None else distance
    slope_N23 = np.linalg.pinv(offset_N32 / spacing)
    weight_N33 = np.concatenate([np.full((n_cells, 1, 3), 1 / 3), slope_N23], axis=1)
    weight_N34 = np.concatenate([weight_N33, -weight_N33.sum(axis=2, keepdims=True)], axis=2)
    rows, columns = np.broadcast_arrays(
        4 * own[:, None, None] + np.arange(1, 4)[:, None],
        np.column_stack([neighbours, own])[:, None],
    )
    values = np.concatenate([np.ones(n_cells), weight_N34.ravel()])
    place = np.concatenate([4 * own, rows.ravel()]), np.concatenate([own, columns.ravel()])
    return csr_array((values, place), shape=(4 * n_cells, n_cells))


def offsets(origin_N13: Floats, points_NK3: Floats) -> Floats:
    """Points as seen from their origin, in units of the radius to the east and the north, [N, K, 2]."""
    east, north = east_north(origin_N13[:, 0])
    step = points_NK3 - origin_N13
    return np.stack([np.einsum("nkd,nd->nk", step, axis) for axis in (east, north)], axis=2)


def offsets_of_children(children_N3: Floats, parents_P3: Floats) -> Floats:
    """Cells as seen from their ancestors, [N, 2], see `offsets`; those of one follow each other."""
    found = np.empty((len(children_N3), 2))
    per_parent = len(children_N3) // len(parents_P3)
    for part in slices(len(parents_P3), _AT_ONCE):
        inside = slice(part.start * per_parent, part.stop * per_parent)
        points = children_N3[inside].reshape(-1, per_parent, 3)
        found[inside] = offsets(parents_P3[part, None], points).reshape(-1, 2)
    return found


def mean_offset(children_N3: Floats, parents_P3: Floats) -> float:
    """Root mean square of `offsets_of_children`."""
    return float(np.sqrt(np.mean(offsets_of_children(children_N3, parents_P3) ** 2)))


def moments(
    children_N3: Floats, parents_P3: Floats, scale: float | None = None
) -> tuple[csr_array, csr_array]:
    """Matrices from four children to their parent, [3 P, N], and back, [N, 3 P], from the centres of both.

    Children of a parent follow each other. Down go the mean and the means weighted with the offset to the
    east and to the north; up goes the plane that its value at the parent and its two slopes give. Offsets
    are in units of ``scale``, by default their root mean square.
    """
    n_children, n_parents = len(children_N3), len(parents_P3)
    per_parent = n_children // n_parents
    scale = mean_offset(children_N3, parents_P3) if scale is None else scale
    offset = offsets_of_children(children_N3, parents_P3) / scale
    weight_N3 = np.column_stack([np.ones(n_children), offset])
    parent = np.arange(n_children) // per_parent
    rows = (3 * parent[:, None] + np.arange(3)).ravel()
    child = np.repeat(np.arange(n_children), 3)
    up = csr_array((weight_N3.ravel(), (child, rows)), shape=(n_children, 3 * n_parents))
    return csr_array(up.T / per_parent), up


def slices(size: int, most: int) -> list[slice]:
    """Parts of an axis, so that what is computed between takes little memory."""
    return [slice(at, min(at + most, size)) for at in range(0, size, most)]
