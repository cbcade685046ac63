"""Cells of a refined grid in nested order: who belongs to whom, and who is beside whom.

Shape suffixes: N fine cells, M blocks, T time steps, V variables.
"""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import create_dataset
from millrace.errors import DataError
from millrace.systems.downscaling.icon_source import Floats, IconGrid, Ints
from millrace.systems.downscaling.pieces import CHILDREN


def nested_order(parents: Sequence[Ints], path: Path) -> tuple[Ints, list[int]]:
    """Order [N] of the fine cells in which children follow each other, and how many cells each level has.

    ``parents`` are those of the fine cells, of their parents, and so on; ``path`` is the grid file, for
    messages. Raises `DataError` if a cell does not have four children on the next finer level.
    """
    ancestors = [np.arange(len(parents[0]))]
    for level, parent in enumerate(parents):
        if int(ancestors[-1].max()) >= len(parent):
            raise DataError(
                f"{path}: parent_cell_index names cells that level {level} does not have"
            )
        ancestors.append(parent[ancestors[-1]])
        counts = np.unique(ancestors[-1], return_counts=True)[1]
        wrong = counts != CHILDREN ** (level + 1)
        if wrong.any():
            raise DataError(
                f"{path}: {wrong.sum()} cells {level + 1} levels up have not {CHILDREN ** (level + 1)} "
                f"descendants but for instance {counts[wrong][0]}; blocks need whole cells: cut the grid "
                "along them or lower levels"
            )
    order = np.lexsort(ancestors)
    return order, [len(order) // CHILDREN**level for level in range(len(parents) + 1)]


def block_means(fine_TNV: NDArray, area_N: Floats, n_blocks: int) -> Floats:
    """Area-weighted means over each block, float64[T, M, V]; cells in nested order."""
    weight_MK = area_N.reshape(n_blocks, -1)
    weight_MK = weight_MK / weight_MK.sum(axis=1, keepdims=True)
    blocks = fine_TNV.reshape(len(fine_TNV), *weight_MK.shape, fine_TNV.shape[2])
    return np.einsum("tmkv,mk->tmv", blocks.astype(np.float64), weight_MK)


def neighbours_above(finer_N3: Ints, level: int, path: Path) -> Ints:
    """Neighbours [cells, 3] of the parents of cells with neighbours ``finer_N3``, in nested order.

    They are -1 where a cell has fewer than three; ``path`` is the grid file and ``level`` how many
    refinements up the parents are, for messages. Raises `DataError` if a cell has more: the refinement is
    not one of triangles.
    """
    n_parents = len(finer_N3) // CHILDREN
    own = np.repeat(np.arange(len(finer_N3)) // CHILDREN, 3)
    other = finer_N3.ravel() // CHILDREN
    across = (finer_N3.ravel() >= 0) & (own != other)
    own, other = np.divmod(np.unique(own[across] * n_parents + other[across]), n_parents)
    counts = np.bincount(own, minlength=n_parents)
    if counts.max() > 3:
        raise DataError(
            f"{path}: parent_cell_index and neighbor_cell_index disagree: a cell {level} levels up has "
            f"{counts.max()} neighbours, a triangle has three"
        )
    result = np.full((n_parents, 3), -1)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    result[own, np.arange(len(own)) - first[own]] = other
    return result


def write_geometry(file: h5py.File, grid: IconGrid, order: Ints, sizes: list[int]) -> None:
    """Write which cells there are, their places, and their neighbours on each level."""
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    neighbours = grid.neighbours_N3[order]
    neighbours = np.where(neighbours >= 0, position[neighbours], -1)
    create_dataset(file, "cell", order + 1)
    create_dataset(file, "geometry/centre", grid.centres_N3[order])
    create_dataset(file, "geometry/area", grid.area_N[order])
    for name, values in (("elevation", grid.elevation_N), ("land", grid.land_N)):
        if values is not None:
            create_dataset(file, f"geometry/{name}", values[order])
    for level in range(len(sizes)):
        if level:
            neighbours = neighbours_above(neighbours, level, grid.path)
        create_dataset(file, f"neighbours/{level}", neighbours)
