"""Spherical harmonics on a Gaussian grid: transforms, derivatives, winds from vorticity.

Shape suffixes: F fields, J latitudes, I longitudes, M orders, L degrees. Coefficients are [..., M, L].
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Complex = NDArray[np.complex128]

RADIUS = 6.371e6
"""Of the earth (m)."""


class Sphere:
    """A triangular truncation and its grid, free of aliasing in products of two fields.

    The grid has ``rows`` latitudes from the south and twice as many longitudes, both in degrees. Weights
    are those of the Gaussian quadrature and add up to 2.
    """

    def __init__(self, truncation: int, rows: int) -> None:
        self.truncation = truncation
        self.sine_J, self.weight_J = np.polynomial.legendre.leggauss(rows)
        self.latitude_J = np.rad2deg(np.arcsin(self.sine_J))
        self.longitude_I = np.arange(2 * rows) * 180.0 / rows
        self.cosine_J1 = np.sqrt(1 - self.sine_J**2)[:, None]
        degree = np.arange(truncation + 1)
        self.laplacian_L: Floats = -degree * (degree + 1) / RADIUS**2
        """Eigenvalues of the Laplacian (1/m²)."""
        values = _legendre(truncation, self.sine_J)
        kept = (degree >= degree[:, None])[:, :, None]
        self.legendre_MLJ = values[:, : truncation + 1] * kept
        self.slope_MLJ = np.zeros_like(self.legendre_MLJ)
        """cos(latitude) times the derivative of ``legendre_MLJ`` by latitude."""
        for m in range(truncation + 1):
            for n in range(m, truncation + 1):
                below = (n + 1) * _epsilon(n, m) * (values[m, n - 1] if n > m else 0.0)
                self.slope_MLJ[m, n] = below - n * _epsilon(n + 1, m) * values[m, n + 1]

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
