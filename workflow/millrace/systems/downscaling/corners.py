"""Corners of triangles of which centres and neighbours are known, such as those of an ICON grid.

The triangles around a corner are found from who is beside whom. Where the corner lies is estimated from
each of them, by the triangles across its edges, and the estimates are averaged.

Shape suffixes: N cells, three corners each; corner k of a cell is opposite to its edge k.
"""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from millrace.systems.downscaling.icon_source import Floats, Ints


def corners(centres_N3: Floats, neighbours_N3: Ints) -> tuple[Floats, Ints]:
    """Corners on the unit sphere, float64[C, 3], and those of each cell, counter-clockwise, int64[N, 3].

    ``centres_N3`` are unit vectors; neighbours are numbers of the cells across the three edges, -1 at the
    rim of a limited area.
    """
    estimate_N33 = 3 * centres_N3[:, None] - 2 * _middles(centres_N3, neighbours_N3)
    cells = np.arange(len(centres_N3))
    pairs = []
    for edge in range(3):
        known = cells[neighbours_N3[:, edge] >= 0]
        other = neighbours_N3[known, edge]
        back = (neighbours_N3[other] == known[:, None]).argmax(axis=1)
        own = [(edge + 1) % 3, (edge + 2) % 3]
        theirs = np.stack([(back + 1) % 3, (back + 2) % 3], axis=1)
        near = [
            [_apart(estimate_N33[known, one], estimate_N33[other, theirs[:, at]]) for at in (0, 1)]
            for one in own
        ]
        straight = near[0][0] + near[1][1] <= near[0][1] + near[1][0]
        for at, one in enumerate(own):
            chosen = np.where(straight, theirs[:, at], theirs[:, 1 - at])
            pairs.append((3 * known + one, 3 * other + chosen))
    row, column = (np.concatenate(one) for one in zip(*pairs, strict=True))
    size = 3 * len(cells)
    graph = coo_array((np.ones(len(row), np.int8), (row, column)), shape=(size, size))
    count, of_corner = connected_components(graph, directed=False)
    total_C3 = np.zeros((count, 3))
    np.add.at(total_C3, of_corner, estimate_N33.reshape(-1, 3))
    place_C3 = total_C3 / np.linalg.norm(total_C3, axis=1, keepdims=True)
    corner_N3 = of_corner.reshape(-1, 3).astype(np.int64)
    a, b, c = (place_C3[corner_N3[:, k]] for k in range(3))
    clockwise = (np.cross(b - a, c - a) * centres_N3).sum(axis=1) < 0
    corner_N3[clockwise] = corner_N3[clockwise][:, ::-1]
    return place_C3, corner_N3


def _middles(centres_N3: Floats, neighbours_N3: Ints) -> Floats:
    """Middles of the edges, [N, 3, 3]; those at the rim from the others, as the three add up to zero."""
    toward_N33 = (centres_N3[neighbours_N3] - centres_N3[:, None]) / 2
    toward_N33[neighbours_N3 < 0] = 0
    missing_N = (neighbours_N3 < 0).sum(axis=1)
    for edge in range(3):
        single = (neighbours_N3[:, edge] < 0) & (missing_N == 1)
        toward_N33[single, edge] = -toward_N33[single].sum(axis=1)
        # Of a cell with one neighbour, the other edges are turned from that one by a third.
        lonely = (neighbours_N3[:, edge] >= 0) & (missing_N == 2)
        up, side = centres_N3[lonely], toward_N33[lonely, edge]
        for sign, other in ((1, (edge + 1) % 3), (-1, (edge + 2) % 3)):
            turned = np.cross(up, side) * np.sqrt(3) / 2
            toward_N33[lonely, other] = -side / 2 + sign * turned
    return centres_N3[:, None] + toward_N33


def _apart(one_N3: Floats, other_N3: Floats) -> Floats:
    return np.linalg.norm(one_N3 - other_N3, axis=1)
