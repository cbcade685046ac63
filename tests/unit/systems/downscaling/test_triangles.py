"""Matrices on triangular grids do what they say to fields that are known in closed form."""

import numpy as np
import pytest

from millrace.systems.downscaling.simulator.icosphere import Icosphere
from millrace.systems.downscaling.triangles import barycentric, differences, east_north, moments


@pytest.fixture(scope="module")
def grid():
    return Icosphere.build(2)


def test_interpolation_is_exact_at_points_and_keeps_constants(grid):
    coarse = Icosphere.build(0).centres_N3
    assert barycentric(coarse, coarse).toarray() == pytest.approx(np.eye(80), abs=1e-9)
    matrix = barycentric(coarse, grid.centres_N3)
    assert matrix.sum(axis=1) == pytest.approx(np.ones(1280))
    assert matrix.data.min() >= 0
    error = matrix @ coarse[:, 2] - grid.centres_N3[:, 2]
    assert np.abs(error).max() < 0.06


def test_differences_of_constants_vanish_and_slopes_point_the_right_way(grid):
    matrix = differences(grid.centres_N3, grid.neighbours_N3)
    value, mean, east, north = (matrix @ np.ones(1280)).reshape(-1, 4).T
    assert value == pytest.approx(1)
    assert np.abs([mean, east, north]).max() < 1e-12
    sine = grid.centres_N3[:, 2]
    value, mean, east, north = (matrix @ sine).reshape(-1, 4).T
    assert value == pytest.approx(sine)
    cosine = np.sqrt(1 - sine**2)
    low = cosine > 0.5
    step = north[low] / cosine[low]
    assert step == pytest.approx(np.full(low.sum(), step.mean()), rel=0.2)
    assert step.mean() > 0
    assert np.abs(east[low]).max() < 0.05 * step.mean()


def test_slopes_do_not_depend_on_how_neighbours_are_numbered(grid):
    one = differences(grid.centres_N3, grid.neighbours_N3)
    other = differences(grid.centres_N3, grid.neighbours_N3[:, [2, 0, 1]])
    assert abs(one - other).max() < 1e-12


def test_a_missing_neighbour_counts_as_the_cell_itself(grid):
    neighbours = grid.neighbours_N3.copy()
    neighbours[5, 1] = -1
    matrix = differences(grid.centres_N3, neighbours)
    assert np.abs((matrix @ np.ones(1280)).reshape(-1, 4)[5, 1:]).max() < 1e-12


def test_moments_carry_a_mean_down_and_a_plane_up(grid):
    parents = Icosphere.build(1).centres_N3
    down, up = moments(grid.centres_N3, parents)
    values = grid.centres_N3[:, 2]
    mean = (down @ values).reshape(-1, 3)[:, 0]
    assert mean == pytest.approx(values.reshape(-1, 4).mean(axis=1))
    plane = np.zeros((320, 3))
    plane[:, 0] = parents[:, 2]
    flat = up @ plane.ravel()
    assert flat == pytest.approx(np.repeat(parents[:, 2], 4))
    plane[:, 2] = 1.0
    rise = (up @ plane.ravel() - flat).reshape(-1, 4)
    northward = np.einsum(
        "pkd,pd->pk", grid.centres_N3.reshape(-1, 4, 3) - parents[:, None], east_north(parents)[1]
    )
    assert np.corrcoef(rise.ravel(), northward.ravel())[0, 1] == pytest.approx(1)
