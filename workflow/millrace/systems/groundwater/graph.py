"""Neighbour tables between point sets: which points lie within a radius of which.

Only NumPy and SciPy, in double precision: distances come from coordinate differences, so a table does
not depend on where the origin is. (`torch.cdist`, which `neuralop` uses on the CPU, expands the square
and loses neighbours of points that lie far from the origin.)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree


@dataclass(frozen=True, eq=False)
class CSR:
    """Neighbours of M query points, in compressed sparse rows."""

    indptr: NDArray[np.int64]
    """int64[M+1]: neighbours of query m are ``index[indptr[m]:indptr[m+1]]``."""
    index: NDArray[np.int64]
    """int64[E]: neighbours, ascending within a query."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Query of each edge, int64[E]."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def transpose(self, n_points: int) -> "CSR":
        """Queries that have each of the ``n_points`` points as a neighbour."""
        order = np.argsort(self.index, kind="stable")
        return _from_sorted(self.index[order], self.rows[order], n_points)


def radius_neighbours(points: ArrayLike, queries: ArrayLike, radius: float) -> CSR:
    """Find the points within a distance of each query.

    Parameters
    ----------
    points : array_like
        [N, D] coordinates.
    queries : array_like
        [M, D] coordinates, in the same unit.
    radius : float
        A point at exactly this distance is a neighbour.

    Returns
    -------
    CSR
        M rows whose neighbours are rows of ``points``.
    """
    points_ND = np.asarray(points, dtype=np.float64)
    queries_MD = np.asarray(queries, dtype=np.float64)
    # The tree prunes with rounded bounds; a hair more, then the exact test, decides ties on lattices
    # the same way everywhere.
    candidates = cKDTree(queries_MD).sparse_distance_matrix(
        cKDTree(points_ND), radius * (1 + 1e-9), output_type="ndarray"
    )
    row, column = candidates["i"].astype(np.int64), candidates["j"].astype(np.int64)
    square = ((queries_MD[row] - points_ND[column]) ** 2).sum(axis=1)
    row, column = row[square <= radius * radius], column[square <= radius * radius]
    order = np.lexsort((column, row))
    return _from_sorted(row[order], column[order], len(queries_MD))


def _from_sorted(row: NDArray[np.int64], column: NDArray[np.int64], n_rows: int) -> CSR:
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=n_rows), out=indptr[1:])
    return CSR(indptr, column)
