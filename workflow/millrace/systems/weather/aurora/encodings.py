"""Fourier encodings of places, scales, pressure levels and times.

Shape suffixes: L patches, D channels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

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

    Parameters
    ----------
    x : Tensor
        Any shape.
    bounds : (float, float)
        Shortest and longest wavelength, in the unit of ``x``.
    channels : int
        D, even.
    """
    low, high = bounds
    wavelengths = torch.logspace(
        float(np.log10(low)),
        float(np.log10(high)),
        channels // 2,
        dtype=torch.float64,
        device=x.device,
    )
    phase = x.double()[..., None] * (2 * np.pi / wavelengths)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def place_encodings(
    latitude_H: Floats, longitude_W: Floats, patch: int, channels: int
) -> tuple[Tensor, Tensor]:
    """Encodings of the position and of the area of each patch, [L, D] both, row by row.

    Parameters
    ----------
    latitude_H, longitude_W : float array
        Degrees, of the rows and columns of cells.
    patch : int
        Cells along a side.
    channels : int
        D.
    """
    lat_P = latitude_H.reshape(-1, patch).mean(axis=1)
    lon_P = longitude_W.reshape(-1, patch).mean(axis=1)
    lat_L, lon_L = (
        np.ascontiguousarray(v).ravel() for v in np.meshgrid(lat_P, lon_P, indexing="ij")
    )
    half = channels // 2
    position = torch.cat(
        [fourier(torch.from_numpy(v), POSITION, half) for v in (lat_L, lon_L)], dim=-1
    )
    dlat = np.abs(np.gradient(latitude_H)).mean() * patch / 2
    dlon = np.deg2rad(np.abs(np.diff(longitude_W)).mean() * patch)
    north, south = (np.sin(np.deg2rad(np.clip(lat_L + sign * dlat, -90, 90))) for sign in (1, -1))
    area_L = EARTH_RADIUS**2 * dlon * (north - south)
    scale = fourier(torch.from_numpy(area_L), SCALE, channels)
    return position.float(), scale.float()
