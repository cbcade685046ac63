"""Interpolation and differences on triangular grids of the sphere, as sparse matrices.

Shape suffixes: N cells, M points.
"""

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import ConvexHull, cKDTree

from millrace.systems.downscaling.icon_source import Floats, Ints

_CANDIDATES = 16
"""Triangles around a point among which the one that holds it is looked for."""


def barycentric(points_M3: Floats, targets_N3: Floats) -> csr_array:
    """Linear interpolation from scattered points of the unit sphere, [N, M]; rows sum to 1.

    Triangles are those of the convex hull, which is the Delaunay triangulation of the sphere.
    """
    triangles = ConvexHull(points_M3).simplices
    corners = points_M3[triangles]
    inverse = np.linalg.inv(corners.swapaxes(1, 2))
    middle = corners.mean(axis=1)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    count = min(_CANDIDATES, len(triangles))
    near = cKDTree(middle).query(targets_N3, count)[1].reshape(len(targets_N3), count)
    # A point is a sum of the corners of its triangle with weights that are not negative.
    weights = np.einsum("nkij,nj->nki", inverse[near], targets_N3)
    best = weights.min(axis=2).argmax(axis=1)
    chosen = np.maximum(np.take_along_axis(weights, best[:, None, None], axis=1)[:, 0], 0)
    chosen /= chosen.sum(axis=1, keepdims=True)
    columns = triangles[np.take_along_axis(near, best[:, None], axis=1)[:, 0]]
    rows = np.repeat(np.arange(len(targets_N3)), 3)
    shape = (len(targets_N3), len(points_M3))
    return csr_array((chosen.ravel(), (rows, columns.ravel())), shape=shape)


def east_north(centres_N3: Floats) -> tuple[Floats, Floats]:
    """Unit vectors to the east and to the north of points, [N, 3] each."""
    east = np.cross([0.0, 0.0, 1.0], centres_N3)
    length = np.linalg.norm(east, axis=1, keepdims=True)
    east = np.where(length > 1e-12, east / np.maximum(length, 1e-12), [0.0, 1.0, 0.0])
    return east, np.cross(centres_N3, east)


def complete(neighbours_N3: Ints) -> Ints:
    """Neighbours of each cell, with the cell itself in place of one that is missing (-1)."""
    return np.where(neighbours_N3 >= 0, neighbours_N3, np.arange(len(neighbours_N3))[:, None])


def differences(centres_N3: Floats, neighbours_N3: Ints) -> csr_array:
    """For each cell: its value, the mean difference to its neighbours, slopes to the east and north.

    These four span what a cell and its three neighbours can tell, in a frame that does not depend on
    how the neighbours are numbered (Jiang et al. 2019, Spherical CNNs on Unstructured Grids, ICLR). Slopes
    are those of the plane that fits best, per mean distance between centres. Neighbours that are
    -1 count as the cell itself. The matrix is [4 N, N]; the rows of a cell follow each other.
    """
    n_cells = len(centres_N3)
    own = np.arange(n_cells)
    neighbours = complete(neighbours_N3)
    offset_N32 = offsets(centres_N3[:, None], centres_N3[neighbours])
    spacing = np.linalg.norm(offset_N32, axis=2)[neighbours_N3 >= 0].mean()
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


def moments(children_N3: Floats, parents_P3: Floats) -> tuple[csr_array, csr_array]:
    """Matrices from four children to their parent, [3 P, N], and back, [N, 3 P], from the centres of both.

    Children of a parent follow each other. Down go the mean and the means weighted with the offset to the
    east and to the north; up goes the plane that its value at the parent and its two slopes give. Offsets
    are in units of their root mean square.
    """
    n_children, n_parents = len(children_N3), len(parents_P3)
    per_parent = n_children // n_parents
    offset = offsets(parents_P3[:, None], children_N3.reshape(n_parents, per_parent, 3))
    offset = offset.reshape(n_children, 2) / np.sqrt(np.mean(offset**2))
    weight_N3 = np.column_stack([np.ones(n_children), offset])
    parent = np.arange(n_children) // per_parent
    rows = (3 * parent[:, None] + np.arange(3)).ravel()
    child = np.repeat(np.arange(n_children), 3)
    up = csr_array((weight_N3.ravel(), (child, rows)), shape=(n_children, 3 * n_parents))
    return csr_array(up.T / per_parent), up
