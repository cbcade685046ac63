"""Spherical harmonics on a Gaussian grid: transforms, derivatives, winds from vorticity.

Shape suffixes: F fields, J latitudes, I longitudes, M orders, L degrees. Coefficients are [..., M, L].
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Complex = NDArray[np.complex128]

RADIUS = 6.371e6
"""Of the earth (m)."""


@dataclass(frozen=True, eq=False)
class Sphere:
    """A triangular truncation and its grid, free of aliasing in products of two fields."""

    truncation: int
    sine_J: Floats
    """Sines of the latitudes, from the south."""
    weight_J: Floats
    """Of the Gaussian quadrature; they add up to 2."""
    longitude_I: Floats
    """Degrees."""
    legendre_MLJ: Floats
    slope_MLJ: Floats
    """cos(latitude) times the derivative of ``legendre_MLJ`` by latitude."""

    @classmethod
    def make(cls, truncation: int, rows: int) -> "Sphere":
        """Lay out ``rows`` latitudes and twice as many longitudes."""
        sine_J, weight_J = np.polynomial.legendre.leggauss(rows)
        values = _legendre(truncation, sine_J)
        degree = np.arange(truncation + 1)
        slope = np.zeros((truncation + 1, truncation + 1, rows))
        for m in range(truncation + 1):
            for n in range(m, truncation + 1):
                below = values[m, n - 1] if n > m else 0.0
                slope[m, n] = (n + 1) * _epsilon(n, m) * below - n * _epsilon(n + 1, m) * values[
                    m, n + 1
                ]
        kept = values[:, : truncation + 1] * (degree[None, :] >= degree[:, None])[:, :, None]
        return cls(truncation, sine_J, weight_J, np.arange(2 * rows) * 180.0 / rows, kept, slope)

    @property
    def latitude_J(self) -> Floats:
        """Degrees."""
        return np.rad2deg(np.arcsin(self.sine_J))

    @property
    def cosine_J1(self) -> Floats:
        """Cosines of the latitudes, as a column."""
        return np.sqrt(1 - self.sine_J**2)[:, None]

    @property
    def laplacian_L(self) -> Floats:
        """Eigenvalues of the Laplacian (1/m²)."""
        n = np.arange(self.truncation + 1)
        return -n * (n + 1) / RADIUS**2

    def analyse(self, field_FJI: Floats) -> Complex:
        """Coefficients of fields, [F, M, L]."""
        columns = field_FJI.shape[-1]
        waves_FJM = np.fft.rfft(field_FJI, axis=-1)[..., : self.truncation + 1] / columns
        weighted_MJF = np.moveaxis(waves_FJM * self.weight_J[:, None], 0, -1).swapaxes(0, 1)
        return np.moveaxis(self.legendre_MLJ @ weighted_MJF, -1, 0) / 2

    def synthesise(self, coefficients_FML: Complex) -> Floats:
        """Fields of coefficients, [F, J, I]."""
        return self._synthesis(coefficients_FML, self.legendre_MLJ)

    def slope(self, coefficients_FML: Complex) -> Floats:
        """cos(latitude) d/dlatitude of fields, [F, J, I]."""
        return self._synthesis(coefficients_FML, self.slope_MLJ)

    def along(self, coefficients_FML: Complex) -> Complex:
        """d/dlongitude (1/rad), as coefficients."""
        return 1j * np.arange(self.truncation + 1)[:, None] * coefficients_FML

    def winds(self, stream_FML: Complex) -> tuple[Floats, Floats]:
        """Eastward and northward wind (m/s) of a stream function (m²/s)."""
        u = -self.slope(stream_FML) / (RADIUS * self.cosine_J1)
        v = self.synthesise(self.along(stream_FML)) / (RADIUS * self.cosine_J1)
        return u, v

    def advection(self, u_FJI: Floats, v_FJI: Floats, coefficients_FML: Complex) -> Floats:
        """(u, v) · grad of fields (per s), [F, J, I]."""
        east = self.synthesise(self.along(coefficients_FML))
        north = self.slope(coefficients_FML)
        return (u_FJI * east + v_FJI * north) / (RADIUS * self.cosine_J1)

    def inverse_laplacian(self, coefficients_FML: Complex) -> Complex:
        """Undo the Laplacian; the mean is 0."""
        eigenvalue = self.laplacian_L.copy()
        eigenvalue[0] = 1.0
        inverse = coefficients_FML / eigenvalue
        inverse[..., 0] = 0.0
        return inverse

    def _synthesis(self, coefficients_FML: Complex, table_MLJ: Floats) -> Floats:
        rows = len(self.sine_J)
        waves_MJF = table_MLJ.swapaxes(1, 2) @ np.moveaxis(coefficients_FML, 0, -1)
        spectrum = np.zeros((coefficients_FML.shape[0], rows, rows + 1), dtype=complex)
        spectrum[..., : self.truncation + 1] = np.moveaxis(waves_MJF, -1, 0).swapaxes(1, 2)
        return np.fft.irfft(spectrum, n=2 * rows, axis=-1) * (2 * rows)


def _epsilon(n: int, m: int) -> float:
    return float(np.sqrt((n * n - m * m) / (4.0 * n * n - 1.0)))


def _legendre(truncation: int, sine_J: Floats) -> Floats:
    """Associated Legendre functions with mean square 1, [M, L + 1, J], by the stable recurrence."""
    cosine_J = np.sqrt(1 - sine_J**2)
    values = np.zeros((truncation + 1, truncation + 2, len(sine_J)))
    diagonal = np.ones_like(sine_J)
    for m in range(truncation + 1):
        if m:
            diagonal = np.sqrt((2 * m + 1) / (2 * m)) * cosine_J * diagonal
        values[m, m] = diagonal
        for n in range(m + 1, truncation + 2):
            below = values[m, n - 2] * _epsilon(n - 1, m) if n > m + 1 else 0.0
            values[m, n] = (sine_J * values[m, n - 1] - below) / _epsilon(n, m)
    return values
