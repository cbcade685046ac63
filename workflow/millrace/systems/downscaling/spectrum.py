"""Angular power spectra of fields on the cells of a spherical grid, by `ducc0`."""

import ducc0
import numpy as np

from millrace.systems.downscaling.icon_source import Floats, Ints

_DEGREES_PER_CELL = 0.45
"""Degrees that are resolved, over the root of the number of cells."""


def largest_degree(n_cells: int) -> int:
    """Degree up to which the sum over cells is a good quadrature."""
    return max(1, int(_DEGREES_PER_CELL * n_cells**0.5))


def power_spectrum(fields_EN: Floats, centres_N3: Floats, area_N: Floats, degree: int) -> Floats:
    """C_l, the mean square of the coefficients of each degree l, [E, degree + 1].

    Coefficients are sums over the cells, weighted with their areas (in any unit): the adjoint of the
    synthesis. Centres are unit vectors, ``degree`` is the largest l.
    """
    colatitude = np.arccos(np.clip(centres_N3[:, 2], -1, 1))
    longitude = np.arctan2(centres_N3[:, 1], centres_N3[:, 0]) % (2 * np.pi)
    place = np.column_stack([colatitude, longitude])
    solid_angle_N = area_N * (4 * np.pi / area_N.sum())
    l_of, m_of = degrees_and_orders(degree)
    spectra = []
    for values_N in fields_EN:
        weighted_1N = (values_N * solid_angle_N)[None].astype(np.float64)
        coefficients = ducc0.sht.adjoint_synthesis_general(
            map=weighted_1N, spin=0, lmax=degree, loc=place, epsilon=1e-6, nthreads=1
        )[0]
        # Orders above 0 stand for their negatives too.
        power = np.abs(coefficients) ** 2 * np.where(m_of > 0, 2, 1)
        spectra.append(np.bincount(l_of, power) / (2 * np.arange(degree + 1) + 1))
    return np.array(spectra)


def degrees_and_orders(largest: int) -> tuple[Ints, Ints]:
    """Degree and order of each coefficient, m-major as in `ducc0`."""
    order, degree = np.triu_indices(largest + 1)
    return degree, order
