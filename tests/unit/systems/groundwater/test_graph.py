"""Neighbour tables against brute force and the reference's search."""

import numpy as np
import pytest
import torch
from neuralop.layers.neighbor_search import native_neighbor_search
from scipy.spatial import cKDTree

from millrace.systems.groundwater.graph import radius_neighbours


def brute_force(points, queries, radius):
    inside = ((queries[:, None] - points[None]) ** 2).sum(axis=2) <= radius * radius
    return np.concatenate([[0], inside.sum(axis=1).cumsum()]), np.nonzero(inside)[1]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("radius", [0.01, 0.2, 2.0])
def test_equals_brute_force(dimensions, radius) -> None:
    random = np.random.default_rng(1)
    points, queries = random.random((300, dimensions)), random.random((200, dimensions))
    table = radius_neighbours(points, queries, radius)
    indptr, index = brute_force(points, queries, radius)
    assert table.indptr.dtype == table.index.dtype == np.int64
    np.testing.assert_array_equal(table.indptr, indptr)
    np.testing.assert_array_equal(table.index, index)


def test_equals_the_reference_on_random_points() -> None:
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(400, 3, generator=generator)
    queries = torch.rand(250, 3, generator=generator)
    expected = native_neighbor_search(points, queries, 0.15)
    table = radius_neighbours(points.numpy(), queries.numpy(), 0.15)
    np.testing.assert_array_equal(table.indptr, expected["neighbors_row_splits"].numpy())
    np.testing.assert_array_equal(table.index, expected["neighbors_index"].numpy())


def test_does_not_depend_on_what_is_looked_at_together(monkeypatch) -> None:
    random = np.random.default_rng(4)
    points, queries = random.random((300, 3)), random.random((200, 3))
    whole = radius_neighbours(points, queries, 0.3)
    searched = []
    monkeypatch.setattr(
        "millrace.systems.groundwater.graph.cKDTree",
        lambda points_ND: searched.append(len(points_ND)) or cKDTree(points_ND),
    )
    monkeypatch.setattr("millrace.systems.groundwater.graph.PAIRS", 300 * 70)
    parted = radius_neighbours(points, queries, 0.3)
    assert searched == [300, 70, 70, 60]
    np.testing.assert_array_equal(parted.indptr, whole.indptr)
    np.testing.assert_array_equal(parted.index, whole.index)


def test_does_not_depend_on_the_origin() -> None:
    random = np.random.default_rng(3)
    points = (
        random.integers(0, 1024, (500, 3)) / 1024
    )  # exact in floating point after the shift, too
    table = radius_neighbours(points, points, 0.1)
    moved = radius_neighbours(points + 1000, points + 1000, 0.1)
    np.testing.assert_array_equal(moved.indptr, table.indptr)
    np.testing.assert_array_equal(moved.index, table.index)
    far = torch.from_numpy(points).float() + 1000
    reference = native_neighbor_search(far, far, 0.1)["neighbors_index"]
    assert len(reference) != len(table.index)  # why the library does not use it


def test_a_point_at_exactly_the_radius_is_a_neighbour() -> None:
    table = radius_neighbours([[0.3, 0], [0, 0.3], [0.3001, 0]], [[0.0, 0.0]], 0.3)
    assert table.index.tolist() == [0, 1]
    lattice = np.stack(np.meshgrid(*[np.arange(9) / 8] * 3, indexing="ij"), -1).reshape(-1, 3)
    table = radius_neighbours(lattice, lattice, 0.125)
    inner = (lattice > 0).all(axis=1) & (lattice < 1).all(axis=1)
    assert (np.diff(table.indptr)[inner] == 7).all()


def test_queries_without_neighbours_are_empty_rows() -> None:
    table = radius_neighbours([[0.0, 0.0]], [[5.0, 5.0], [0.1, 0.0], [9.0, 9.0]], 1.0)
    assert table.indptr.tolist() == [0, 0, 1, 1]
    assert table.index.tolist() == [0]
