"""Steady Darcy flow, -div(k grad p) = f on the unit square with p = 0 on its boundary, by finite volumes.

The fields are those of Li et al. (2021, arXiv:2010.08895), section 5.2: a Gaussian random field is the
logarithm of the permeability, or its sign tells two rocks apart; the source is 1 everywhere. All is
dimensionless.

Shape suffixes: S samples, Y and X cells along each axis of the square.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.fft import idctn
from scipy.sparse import csc_array, diags_array
from scipy.sparse.linalg import splu

from millrace.config import Seed, Settings, option

Floats = NDArray[np.float64]


class DarcyConfig(Settings):
    """Settings of the generator; the block ``demo`` of a dataset."""

    samples: int = option(800, ge=3)
    """Independent fields."""
    cells: int = option(32, ge=2)
    """Along each side of the square."""
    rock: Literal["lognormal", "two"] = "lognormal"
    """``two``: rocks whose permeabilities are 12 and 3."""
    spread: float = option(1.0, ge=0)
    """Standard deviation of the logarithm of a log-normal permeability."""
    seed: Seed = 0
    """Other fields of the same kind."""


def write_darcy(
    config: DarcyConfig, directory: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Simulate samples into ``darcy.nc``; `progress` is called with (samples done, all)."""
    shape = (config.samples, config.cells, config.cells)
    permeability_SYX, pressure_SYX = np.empty(shape), np.empty(shape)
    for sample in range(config.samples):
        random = np.random.default_rng([config.seed, sample])
        field_YX = random_field(config.cells, random)
        two_rocks = config.rock == "two"
        lognormal_YX = np.exp(config.spread * field_YX)
        permeability_SYX[sample] = np.where(field_YX > 0, 12, 3) if two_rocks else lognormal_YX
        pressure_SYX[sample] = pressure(permeability_SYX[sample])
        if progress is not None:
            progress(sample + 1, config.samples)
    dims, centres = ("sample", "y", "x"), (np.arange(config.cells) + 0.5) / config.cells
    directory.mkdir(parents=True, exist_ok=True)
    xr.Dataset(
        {
            "permeability": (dims, permeability_SYX, {"units": "1"}),
            "pressure": (dims, pressure_SYX, {"units": "1"}),
        },
        {name: (name, centres, {"units": "1"}) for name in ("y", "x")},
    ).to_netcdf(directory / "darcy.nc")


def random_field(cells: int, random: np.random.Generator) -> Floats:
    """Draw a Gaussian random field [Y, X] with covariance (9 - Laplacian)^-2 and no flux at the boundary.

    It is a sum of cosines, normalised to a standard deviation of about 1.
    """
    wave = np.pi * np.arange(cells)
    root = 1 / (9.0 + wave[:, None] ** 2 + wave**2)  # of the eigenvalues of the covariance
    root[0, 0] = 0.0  # the mean is zero
    return idctn(random.standard_normal((cells, cells)) * root, norm="ortho") * (
        cells / np.sqrt((root**2).sum())
    )


def pressure(
    permeability_YX: ArrayLike, source_YX: ArrayLike = 1.0, axes: Sequence[int] = (0, 1)
) -> Floats:
    """Solve for the pressure in the cells, [Y, X]; there is flow along the ``axes`` only.

    The flux between two cells is that of two slabs in series, with the harmonic mean of their
    permeabilities; the boundary is half a cell from the outer centres. Of second order in the width of the
    cells where the permeability is smooth (Eymard, Gallouët & Herbin 2000, Handbook of Numerical Analysis
    7, 713-1020).
    """
    k_YX = np.asarray(permeability_YX, dtype=np.float64)
    shape, number_YX = k_YX.shape, np.arange(k_YX.size).reshape(k_YX.shape)
    diagonal_YX, parts = np.zeros(shape), []
    for axis in axes:
        ratio = shape[axis] / shape[1 - axis]  # width of a face over the distance across it
        k, number, total = (np.moveaxis(a, axis, 0) for a in (k_YX, number_YX, diagonal_YX))
        between = ratio * 2 * k[1:] * k[:-1] / (k[1:] + k[:-1])
        total[1:] += between
        total[:-1] += between
        for side in (0, -1):
            total[side] += 2 * ratio * k[side]
        parts.append((between.ravel(), number[1:].ravel(), number[:-1].ravel()))
    value, row, column = (np.concatenate(part) for part in zip(*parts, strict=True))
    upper = csc_array((-value, (row, column)), shape=(k_YX.size, k_YX.size))
    matrix = diags_array(diagonal_YX.ravel()) + upper + upper.T
    right = np.broadcast_to(source_YX, shape).ravel() / k_YX.size
    return splu(matrix.tocsc()).solve(right).reshape(shape)
