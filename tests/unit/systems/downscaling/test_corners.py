"""Corners of cells that are known by centres and neighbours alone, against those of an icosphere."""

import numpy as np

from millrace.systems.downscaling.corners import corners
from millrace.systems.downscaling.simulator.icosphere import Icosphere


def _area(place_N33):
    a, b, c = place_N33.swapaxes(0, 1)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def test_corners_of_the_globe_are_its_vertices_whatever_the_order_of_edges():
    grid, random = Icosphere.build(2), np.random.default_rng(0)
    true_N33 = grid.corners_N33
    centres = true_N33.mean(axis=1)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    neighbours = random.permuted(grid.neighbours_N3, axis=1)
    place, faces = corners(centres, neighbours)
    assert len(place) == len(grid.vertices_P3)
    edge = np.sqrt(_area(true_N33).mean())
    apart = np.linalg.norm(place[:, None] - grid.vertices_P3, axis=2).min(axis=1)
    assert apart.max() < 0.1 * edge
    outward = np.cross(*(place[faces[:, k]] - place[faces[:, 0]] for k in (1, 2)))
    assert ((outward * centres).sum(axis=1) > 0).all()
    # Cells that share an edge share its two corners.
    for cell, other in zip(range(len(faces)), neighbours[:, 0], strict=True):
        assert len({*faces[cell]} & {*faces[other]}) == 2


def test_cells_at_the_rim_of_an_area_are_triangles_of_the_same_size():
    grid = Icosphere.build(2)
    centres = grid.corners_N33.mean(axis=1)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    kept = np.flatnonzero(centres[:, 2] > 0.5)
    position = np.full(len(centres), -1)
    position[kept] = np.arange(len(kept))
    beside = position[grid.neighbours_N3[kept]]
    assert (beside < 0).any()
    place, faces = corners(centres[kept], beside)
    ratio = _area(place[faces]) / _area(grid.corners_N33[kept])
    assert 0.5 < ratio.min() < ratio.max() < 1.6
