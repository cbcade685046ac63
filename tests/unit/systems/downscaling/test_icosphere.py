"""The demo grid is a closed, nested icosahedral grid in the layout of ICON files."""

import netCDF4
import numpy as np
import pytest

from millrace.errors import ConfigError
from millrace.systems.downscaling.simulator.icosphere import Icosphere, write_grid


@pytest.fixture(scope="module")
def grid():
    return Icosphere.build(2)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_counts_are_those_of_r2b(level):
    grid = Icosphere.build(level)
    n_cells = 80 * 4**level
    assert grid.cells_N3.shape == (n_cells, 3)
    assert len(grid.edges_E2) == 3 * n_cells // 2
    assert len(grid.vertices_P3) == n_cells // 2 + 2  # Euler


def test_areas_fill_the_sphere(grid):
    assert grid.area_N.min() > 0, "a cell is clockwise"
    assert grid.area_N.sum() == pytest.approx(4 * np.pi, rel=1e-12)


def test_neighbours_share_the_edge_opposite_to_a_vertex(grid):
    for cell, (vertices, neighbours) in enumerate(
        zip(grid.cells_N3, grid.neighbours_N3, strict=True)
    ):
        for k, neighbour in enumerate(neighbours):
            shared = set(vertices) & set(grid.cells_N3[neighbour])
            assert shared == set(np.delete(vertices, k))
            assert cell in grid.neighbours_N3[neighbour]


def test_children_lie_in_their_parent_the_centre_first(grid):
    coarse = Icosphere.build(1)
    assert np.array_equal(grid.parent_N, np.repeat(np.arange(len(coarse.cells_N3)), 4))
    area = np.bincount(grid.parent_N, grid.area_N)
    assert area == pytest.approx(coarse.area_N, rel=0.05)
    distance = np.linalg.norm(grid.centres_N3 - coarse.centres_N3[grid.parent_N], axis=1)
    assert (distance.reshape(-1, 4).argmin(axis=1) == 0).all()
    siblings = grid.neighbours_N3[::4]
    assert np.array_equal(np.sort(siblings), np.arange(len(grid.cells_N3)).reshape(-1, 4)[:, 1:])


def test_file_has_the_names_of_icon(grid, tmp_path):
    land = grid.centres_N3[:, 0] > 0
    write_grid(tmp_path / "R2B02.nc", grid, land * 500.0, land)
    with netCDF4.Dataset(tmp_path / "R2B02.nc") as file:
        assert file["neighbor_cell_index"].dimensions == ("nv", "cell")
        assert file["neighbor_cell_index"][:].min() == 1, "indices begin at 1"
        assert np.array_equal(file["parent_cell_index"][:], grid.parent_N + 1)
        assert (file.grid_root, file.grid_level) == (2, 2)
        assert file.uuidOfParHGrid == Icosphere.build(1).uuid != file.uuidOfHGrid
        assert np.array_equal(file["cell_sea_land_mask"][:] > 0, land)
        assert np.abs(file["clat"][:]).max() < np.pi / 2


def test_level_out_of_range():
    with pytest.raises(ConfigError, match="level: expected 0 to 7, got 9"):
        Icosphere.build(9)
