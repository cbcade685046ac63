"""Icosahedral grids R2Bk in the layout of ICON grid files.

The 20 faces of an icosahedron are bisected ``level + 1`` times: R2B00 has 80 cells, each level four
times as many. Children follow each other, the one in the centre first; it is turned by half a circle, so
that its vertex k lies opposite to vertex k of its parent.

Zängl et al. (2015), The ICON dynamical core, doi:10.1002/qj.2378, section 2. Unlike in ICON, vertices
are not moved by springs afterwards: areas of cells differ by 30 %.

Shape suffixes: N cells, E edges, P vertices.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path

import netCDF4
import numpy as np
from numpy.typing import NDArray

from millrace.errors import ConfigError
from millrace.files import atomic_write
from millrace.systems.downscaling.icon_source import Floats, Ints, unit_vectors

MAXIMUM_LEVEL = 7
ROOT = 2

_NAMESPACE = uuid.UUID("8c5a3d5e-6f3b-5d55-9f6e-3f1f0b9a7c11")


@dataclass(frozen=True, eq=False)
class Icosphere:
    """A grid of triangles on the unit sphere."""

    level: int
    vertices_P3: Floats
    cells_N3: Ints
    """Vertices of each cell, anticlockwise as seen from outside."""
    neighbours_N3: Ints
    """Cell across the edge opposite to each vertex."""
    edges_E2: Ints
    cell_edges_N3: Ints
    """Edge opposite to each vertex."""

    @classmethod
    def build(cls, level: int) -> "Icosphere":
        """Make the grid R2B``level``; `ConfigError` for a level that is negative or too fine."""
        if not 0 <= level <= MAXIMUM_LEVEL:
            raise ConfigError(f"level: expected 0 to {MAXIMUM_LEVEL}, got {level}")
        corners = _icosahedron()
        for _ in range(level + 1):
            corners = _bisected(corners)
        # Vertices of neighbouring cells differ by rounding only.
        rounded = np.round(corners.reshape(-1, 3), 9) + 0.0
        _, first, number = np.unique(rounded, axis=0, return_index=True, return_inverse=True)
        cells = number.reshape(-1, 3)
        edges, cell_edges, neighbours = _edges(cells)
        return cls(level, corners.reshape(-1, 3)[first], cells, neighbours, edges, cell_edges)

    @property
    def corners_N33(self) -> Floats:
        """Positions of each cell's vertices."""
        return self.vertices_P3[self.cells_N3]

    @property
    def centres_N3(self) -> Floats:
        """Unit vectors of the centres of mass."""
        return _unit(self.corners_N33.sum(axis=1))

    @property
    def area_N(self) -> Floats:
        """Solid angle of each cell (sr); the sum is that of the sphere."""
        a, b, c = self.corners_N33.swapaxes(0, 1)
        # van Oosterom & Strackee (1983), doi:10.1109/TBME.1983.325207.
        volume = np.einsum("nd,nd->n", a, np.cross(b, c))
        dots = [np.einsum("nd,nd->n", p, q) for p, q in ((a, b), (b, c), (c, a))]
        return 2 * np.arctan2(volume, 1 + sum(dots))

    @property
    def parent_N(self) -> Ints:
        """Cell of the next coarser grid that holds each cell; -1 on R2B00, which has none."""
        n_cells = len(self.cells_N3)
        return np.arange(n_cells) // 4 if self.level else np.full(n_cells, -1)

    @property
    def uuid(self) -> str:
        """Name of the grid in files that refer to it."""
        return _uuid(self.level)


def write_grid(
    path: Path,
    grid: Icosphere,
    elevation_N: Floats | None = None,
    land_N: NDArray[np.bool_] | None = None,
) -> None:
    """Write an ICON grid file (NetCDF), with the height of the surface (m) and whether a cell is land.

    In ``cell_sea_land_mask`` land is 2, otherwise -2. The file appears only when it is complete.
    """
    with atomic_write(path) as partial, netCDF4.Dataset(partial, "w") as file:
        sizes = {"cell": len(grid.cells_N3), "vertex": len(grid.vertices_P3)}
        for name, size in (sizes | {"edge": len(grid.edges_E2), "nv": 3, "nc": 2}).items():
            file.createDimension(name, size)
        for dimension, points in (("cell", grid.centres_N3), ("vertex", grid.vertices_P3)):
            for name, values in zip(("lon", "lat"), lonlat(points), strict=True):
                file.createVariable(dimension[0] + name, "f8", (dimension,))[:] = values
                file[dimension[0] + name].units = "radian"
        file.createVariable("cell_area", "f8", ("cell",))[:] = grid.area_N
        file["cell_area"].units = "steradian"
        for name, dimensions, index in (
            ("vertex_of_cell", ("nv", "cell"), grid.cells_N3.T),
            ("edge_of_cell", ("nv", "cell"), grid.cell_edges_N3.T),
            ("edge_vertices", ("nc", "edge"), grid.edges_E2.T),
            ("neighbor_cell_index", ("nv", "cell"), grid.neighbours_N3.T),
            ("parent_cell_index", ("cell",), grid.parent_N),
        ):
            file.createVariable(name, "i4", dimensions)[:] = index + 1
        if elevation_N is not None:
            file.createVariable("cell_elevation", "f8", ("cell",))[:] = elevation_N
            file["cell_elevation"].units = "m"
        if land_N is not None:
            file.createVariable("cell_sea_land_mask", "i4", ("cell",))[:] = np.where(land_N, 2, -2)
        file.title = "Icosahedral grid made by Millrace"
        file.grid_root, file.grid_level = np.int32(ROOT), np.int32(grid.level)
        file.uuidOfHGrid = grid.uuid
        if grid.level:
            file.uuidOfParHGrid = _uuid(grid.level - 1)


def lonlat(xyz_N3: Floats) -> tuple[Floats, Floats]:
    """Longitude and latitude (rad) of unit vectors."""
    return np.arctan2(xyz_N3[:, 1], xyz_N3[:, 0]), np.arcsin(np.clip(xyz_N3[:, 2], -1, 1))


def _uuid(level: int) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"R{ROOT}B{level:02d}"))


def _icosahedron() -> Floats:
    """Faces of an icosahedron with a vertex at each pole, float64[20, 3, 3], anticlockwise."""
    ring = np.arctan(0.5)
    upper = [(2 * np.pi * k / 5, ring) for k in range(5)]
    lower = [(2 * np.pi * (k + 0.5) / 5, -ring) for k in range(5)]
    angles = np.array([(0.0, np.pi / 2), *upper, *lower, (0.0, -np.pi / 2)])
    faces = []
    for k in range(5):
        up, up_next, low, low_next = 1 + k, 1 + (k + 1) % 5, 6 + k, 6 + (k + 1) % 5
        faces += [(0, up, up_next), (up, low, up_next), (up_next, low, low_next)]
        faces += [(low, 11, low_next)]
    return unit_vectors(*angles.T)[np.array(faces)]


def _bisected(corners_N33: Floats) -> Floats:
    """Four triangles in place of each: the centre, then those at the vertices."""
    v0, v1, v2 = corners_N33.swapaxes(0, 1)
    m0, m1, m2 = (_unit(p + q) for p, q in ((v1, v2), (v2, v0), (v0, v1)))
    children = [(m0, m1, m2), (v0, m2, m1), (m2, v1, m0), (m1, m0, v2)]
    return np.stack([np.stack(child, axis=1) for child in children], axis=1).reshape(-1, 3, 3)


def _edges(cells_N3: Ints) -> tuple[Ints, Ints, Ints]:
    """Edges [E, 2], edge of each cell opposite to each vertex, and the cell on its other side."""
    ends = np.sort(cells_N3[:, [[1, 2], [2, 0], [0, 1]]], axis=2).reshape(-1, 2)
    edges, number = np.unique(ends, axis=0, return_inverse=True)
    order = np.argsort(number, kind="stable").reshape(-1, 2)  # both sides of each edge
    other = np.empty(len(ends), dtype=np.int64)
    other[order] = order[:, ::-1] // 3
    return edges, number.reshape(-1, 3), other.reshape(-1, 3)


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
