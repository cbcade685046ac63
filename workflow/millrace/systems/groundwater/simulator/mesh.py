"""Node-centred finite-volume meshes as graphs: triangulated planes and stacks of them (prisms)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Mesh:
    """Control volumes (nodes) and the faces between them (edges); the dimension no longer shows."""

    edges: Ints
    """[E, 2]: nodes of the two volumes that share a face."""
    shape_factor: Floats
    """[E]: face area over node distance (m), so that conductivity times it is a conductance."""
    length: Floats
    """[E]: node distance (m)."""
    vertical: NDArray[np.bool_]
    """[E]: whether the edge joins two slices of a prism mesh."""
    volume: Floats
    """[N]: control volume (m³)."""
    z: Floats
    """[N]: elevation (m)."""


def lloyd_points(size: tuple[float, float], n_nodes: int, rng: np.random.Generator) -> Floats:
    """Spread points over a rectangle whose Delaunay triangles are well shaped, [n_nodes, 2] (m).

    Points lie evenly on the outline; those inside follow Lloyd's algorithm (1982,
    doi:10.1109/TIT.1982.1056489) for a random sample of the area, which keeps them irregular. They are
    sorted by the first coordinate. ``size`` (m) is measured from the origin; a rectangle that is about
    square takes 30 nodes or more.
    """
    extent = np.array(size)
    n_x, n_y = np.round(extent / np.sqrt(extent.prod() / n_nodes)).astype(int)
    x, y = np.linspace(0, 1, n_x + 1), np.linspace(0, 1, n_y + 1)[1:-1]
    along = np.column_stack([np.tile(x, 2), np.repeat([0.0, 1.0], len(x))])
    across = np.column_stack([np.repeat([0.0, 1.0], len(y)), np.tile(y, 2)])
    outline = extent * np.concatenate([along, across])
    inside = extent * rng.random((n_nodes - len(outline), 2))
    sample = extent * rng.random((60 * n_nodes, 2))
    for _ in range(12):
        _, nearest = cKDTree(np.concatenate([inside, outline])).query(sample)
        count = np.bincount(nearest, minlength=n_nodes)[: len(inside)]
        for axis in range(2):
            total = np.bincount(nearest, sample[:, axis], minlength=n_nodes)[: len(inside)]
            inside[:, axis] = np.where(count, total / np.maximum(count, 1), inside[:, axis])
    points = np.concatenate([inside, outline])
    return points[np.lexsort((points[:, 1], points[:, 0]))]


def triangle_graph(points: Floats, triangles: Ints) -> tuple[Ints, Floats, Floats]:
    """Edges, cotangent weights and node areas of a triangulation.

    The weight of an edge is half the sum of the cotangents of the angles opposite to it: the length
    of the Voronoi face over that of the edge, which makes two-point fluxes exact for linear fields.
    Delaunay triangulations have weights >= 0 inside; an obtuse angle that faces the outer boundary
    would give a negative one, and is cut off at 0 to keep the matrices monotone.

    Parameters
    ----------
    points : float array [N, 2]
        Coordinates (m).
    triangles : int array [M, 3]
        Node indices.

    Returns
    -------
    edges : int array [E, 2]
        Sorted pairs, each once.
    weights : float array [E]
        Dimensionless.
    areas : float array [N]
        A third of every triangle (m²) goes to each of its corners.
    """
    corner = points[triangles]
    opposite_pairs, cotangents = [], []
    for k in range(3):
        opposite = [(k + 1) % 3, (k + 2) % 3]
        a, b = (corner[:, i] - corner[:, k] for i in opposite)
        twice_area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
        cotangents.append(np.sum(a * b, axis=1) / twice_area)
        opposite_pairs.append(triangles[:, opposite])
    pairs = np.sort(np.concatenate(opposite_pairs), axis=1)
    edges, position = np.unique(pairs, axis=0, return_inverse=True)
    weights = np.bincount(position.ravel(), weights=0.5 * np.concatenate(cotangents))
    areas = np.bincount(
        triangles.ravel(), weights=np.repeat(twice_area / 6.0, 3), minlength=len(points)
    )
    return edges.astype(np.int64), np.maximum(weights, 0.0), areas.astype(np.float64)


def prism_mesh(points: Floats, triangles: Ints, elevation: Floats) -> Mesh:
    """Stack one planform into prisms, nodes numbered slice by slice from the top.

    Points [P, 2] (m) and triangles [M, 3] are those of the planform; the elevation [S, P] (m) of two slices
    or more decreases along the first axis.
    """
    n_slices, n_plan = elevation.shape
    plan_edges, weights, areas = triangle_graph(points, triangles)
    spacing = elevation[:-1] - elevation[1:]
    height = np.zeros_like(elevation)
    height[:-1] += 0.5 * spacing
    height[1:] += 0.5 * spacing

    offset = n_plan * np.arange(n_slices)[:, None, None]
    lateral = (plan_edges[None] + offset).reshape(-1, 2)
    face_height = 0.5 * (height[:, plan_edges[:, 0]] + height[:, plan_edges[:, 1]])
    upper = np.arange((n_slices - 1) * n_plan)
    xyz = np.column_stack([np.tile(points, (n_slices, 1)), elevation.ravel()])
    edges = np.concatenate([lateral, np.column_stack([upper, upper + n_plan])])
    return Mesh(
        edges=edges,
        shape_factor=np.concatenate([(weights * face_height).ravel(), (areas / spacing).ravel()]),
        length=np.linalg.norm(xyz[edges[:, 0]] - xyz[edges[:, 1]], axis=1),
        vertical=np.arange(len(edges)) >= len(lateral),
        volume=(areas * height).ravel(),
        z=elevation.ravel(),
    )
