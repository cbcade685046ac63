"""Fourier encodings of places, scales, pressure levels and times.

Shape suffixes: L patches, D channels.
"""

import math

import numpy as np
import torch
from torch import Tensor

EARTH_RADIUS = 6371.0
"""km."""
POSITION = (0.01, 720.0)
"""Shortest and longest wavelength of latitudes and longitudes (degrees)."""
SCALE = (0.01, 1.5e8)
"""Of areas of patches (km²): up to a quarter of the globe and more."""
PRESSURE = (0.01, 1e5)
"""Of pressure levels (hPa)."""
LEAD_TIME = (1 / 60, 24 * 7 * 3.0)
"""Of lead times (h)."""
ABSOLUTE_TIME = (1.0, 365.25 * 24)
"""Of the time of the day and of the year (h)."""


def fourier(x: Tensor, bounds: tuple[float, float], channels: int) -> Tensor:
    """Sines and cosines at log-spaced wavelengths, [..., D], float64 within (Bodnar et al. 2025, B.3).

    ``bounds`` are the shortest and the longest wavelength, in the unit of ``x``; ``channels`` is D, even.
    """
    # Not by NumPy, which a compiler would take for operations on the CPU.
    low, high = (math.log10(bound) for bound in bounds)
    wavelengths = torch.logspace(low, high, channels // 2, dtype=torch.float64, device=x.device)
    phase = x.double()[..., None] * (2 * np.pi / wavelengths)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def place_encodings(
    latitude_H: np.ndarray, longitude_W: np.ndarray, patch: int, channels: int
) -> tuple[Tensor, Tensor]:
    """Encodings of the position and of the area of each patch, [L, D] both, row by row.

    Latitudes and longitudes (degrees) are those of the rows and columns of cells; ``patch`` is the number
    of cells along a side, ``channels`` is D. A place has the same encoding whether the grid is the globe or
    an area that crosses 0 degrees.
    """
    centres = (axis.reshape(-1, patch).mean(axis=1) for axis in (latitude_H, longitude_W))
    lat_L, lon_L = (v.ravel() for v in np.meshgrid(*centres, indexing="ij"))
    places = (lat_L, lon_L % 360.0)
    parts = [fourier(torch.from_numpy(v), POSITION, channels // 2) for v in places]
    position = torch.cat(parts, dim=-1)
    dlat = np.abs(np.gradient(latitude_H)).mean() * patch / 2
    dlon = np.deg2rad(np.abs(np.diff(longitude_W)).mean() * patch)
    north, south = (np.sin(np.deg2rad(np.clip(lat_L + sign * dlat, -90, 90))) for sign in (1, -1))
    area_L = EARTH_RADIUS**2 * dlon * (north - south)
    scale = fourier(torch.from_numpy(area_L), SCALE, channels)
    return position.float(), scale.float()
