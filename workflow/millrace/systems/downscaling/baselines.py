"""Forecasts that a downscaler has to beat: deterministic, and fitted to the training period only.

Shape suffixes: N fine cells, M blocks, K regressors, T times.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from millrace.systems.downscaling.icon_source import Floats, Ints
from millrace.systems.downscaling.triangles import complete

_RIDGE = 1e-3


def block_mean_copy(coarse_TM: Floats, n_cells: int) -> Floats:
    """Each cell has the mean of its block, [T, N]."""
    return np.repeat(coarse_TM, n_cells // coarse_TM.shape[1], axis=1)


def interpolation(coarse_TM: Floats, matrix_NM: csr_array) -> Floats:
    """Barycentric interpolation between the centres of the blocks, [T, N]."""
    return (matrix_NM @ coarse_TM.T).T


@dataclass(frozen=True, eq=False)
class LinearRegression:
    """For each cell a linear function of its block, the three blocks beside it, and the hour.

    The target is what the cell differs by from its block. Each cell has its own coefficients: what the
    place does to the mean and to the daily cycle is in them.
    """

    coefficient_NK: Floats
    neighbours_M3: Ints

    @classmethod
    def fit(
        cls, parts: Iterator[tuple[Floats, Floats, Floats]], neighbours_M3: Ints, n_cells: int
    ) -> "LinearRegression":
        """Fit to (fine [T, N], coarse [T, M], time in days [T]) of the training period, in parts."""
        per_block = n_cells // len(neighbours_M3)
        n_regressors = 7
        gram = np.zeros((len(neighbours_M3), n_regressors, n_regressors))
        moment = np.zeros((len(neighbours_M3), n_regressors, per_block))
        for fine_TN, coarse_TM, time_T in parts:
            x_TMK = _regressors(coarse_TM, time_T, neighbours_M3)
            residual_TN = fine_TN - block_mean_copy(coarse_TM, n_cells)
            residual_TMC = residual_TN.reshape(len(fine_TN), -1, per_block)
            gram += np.einsum("tmk,tml->mkl", x_TMK, x_TMK)
            moment += np.einsum("tmk,tmc->mkc", x_TMK, residual_TMC)
        scale = np.einsum("mkk->mk", gram)
        ridge = np.einsum("mk,kl->mkl", _RIDGE * scale + 1e-12, np.eye(n_regressors))
        solution = np.linalg.solve(gram + ridge, moment)
        return cls(solution.swapaxes(1, 2).reshape(n_cells, n_regressors), neighbours_M3)

    def __call__(self, coarse_TM: Floats, time_T: Floats) -> Floats:
        """Forecast, [T, N]."""
        x_TMK = _regressors(coarse_TM, time_T, self.neighbours_M3)
        coefficient_MCK = self.coefficient_NK.reshape(x_TMK.shape[1], -1, x_TMK.shape[2])
        residual = np.einsum("tmk,mck->tmc", x_TMK, coefficient_MCK)
        n_cells = len(self.coefficient_NK)
        return block_mean_copy(coarse_TM, n_cells) + residual.reshape(len(coarse_TM), -1)


def _regressors(coarse_TM: Floats, time_T: Floats, neighbours_M3: Ints) -> Floats:
    """1, differences to the blocks beside, the block itself, sine and cosine of the hour, [T, M, K]."""
    difference = coarse_TM[:, complete(neighbours_M3)] - coarse_TM[..., None]
    angle = 2 * np.pi * np.broadcast_to(time_T[:, None] % 1, coarse_TM.shape)
    # Temperatures in kelvin are far from 0, which the small ridge would mind.
    anomaly = (coarse_TM - 273.15)[..., None] / 10
    cycle = np.stack([np.sin(angle), np.cos(angle)], axis=2)
    return np.concatenate([np.ones_like(anomaly), difference, anomaly, cycle], axis=2)
