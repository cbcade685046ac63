"""Neighbour tables between point sets: which points lie within a radius of which.

Only NumPy and SciPy, in double precision: distances come from coordinate differences, so a table does
not depend on where the origin is. (`torch.cdist`, which `neuralop` uses on the CPU, expands the square
and loses neighbours of points that lie far from the origin.)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

PAIRS = 1 << 26
"""Of queries and points, looked at together at most."""


@dataclass(frozen=True, eq=False)
class CSR:
    """Neighbours of M query points, in compressed sparse rows."""

    indptr: NDArray[np.int64]
    """int64[M+1]: neighbours of query m are ``index[indptr[m]:indptr[m+1]]``."""
    index: NDArray[np.int64]
    """int64[E]: neighbours, ascending within a query."""


def radius_neighbours(points: ArrayLike, queries: ArrayLike, radius: float) -> CSR:
    """Find which of the points [N, D] lie within a distance of each query [M, D], or at exactly it.

    The M rows of the table hold rows of ``points``.
    """
    points_ND = np.asarray(points, dtype=np.float64)
    queries_MD = np.asarray(queries, dtype=np.float64)
    tree, together = cKDTree(points_ND), max(1, PAIRS // max(1, len(points_ND)))
    tables = [
        _neighbours(points_ND, tree, queries_MD[start : start + together], radius)
        for start in range(0, max(1, len(queries_MD)), together)
    ]
    counts, index = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    return CSR(np.concatenate([[0], np.cumsum(counts)]), index)


def _neighbours(
    points_ND: NDArray[np.float64], tree: cKDTree, queries_MD: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of neighbours of each query, and their rows."""
    # The tree prunes with rounded bounds; a hair more, then the exact test, decides ties on lattices
    # the same way everywhere.
    candidates = cKDTree(queries_MD).sparse_distance_matrix(
        tree, radius * (1 + 1e-9), output_type="ndarray"
    )
    row, column = candidates["i"].astype(np.int64), candidates["j"].astype(np.int64)
    square = ((queries_MD[row] - points_ND[column]) ** 2).sum(axis=1)
    row, column = row[square <= radius * radius], column[square <= radius * radius]
    counts = np.bincount(row, minlength=len(queries_MD))
    return counts, column[np.lexsort((column, row))]
