"""What the published weights of Aurora take for granted: how fields are normalised, what places are told.

The numbers are those of `microsoft-aurora` 1.8 (MIT licence), statistics of ERA5 in SI units.

Shape suffixes: C channels, F static fields, N patches, D channels of a token, H rows, W columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from millrace.systems.weather.aurora.encodings import POSITION, fourier
from millrace.systems.weather.units import short_name, short_static_name

LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
"""hPa."""
SURFACE = {
    "2t": (278.514, 21.22036),
    "10u": (-0.05135059, 5.547512),
    "10v": (0.189158, 4.765339),
    "msl": (100957.8, 1332.246),
}
"""Location and scale of each variable."""
STATIC = {"lsm": (0.0, 1.0), "z": (-1386.496, 58844.67), "slt": (0.0, 7.0)}
"""The same of fields that do not change."""
# fmt: off
AIR = {
    "z": (
        (199373.0, 157642.1, 133141.4, 115330.0, 101223.1, 89414.15, 69980.38, 54115.37, 40648.33,
         28928.82, 13749.78, 7015.005, 738.1545),
        (5875.553, 5510.64, 5823.912, 5820.169, 5536.585, 5091.916, 4150.851, 3353.187, 2695.808,
         2136.436, 1470.321, 1228.997, 1072.307),
    ),
    "u": (
        (5.653076, 10.27951, 13.54061, 14.20915, 13.34584, 11.80173, 8.817291, 6.563273, 4.814521,
         3.345237, 1.418379, 0.6172657, -0.03328723),
        (15.29281, 13.52611, 16.04335, 17.6763, 17.9671, 17.11917, 14.34276, 11.98419, 10.33421,
         9.168821, 8.188043, 7.940808, 6.141778),
    ),
    "v": (
        (0.004226111, 0.01411897, -0.03697671, -0.04507801, -0.02980338, -0.0229477, -0.01771003,
         -0.02387986, -0.02716674, 0.02153583, 0.142815, 0.205348, 0.1867637),
        (7.058931, 7.47931, 9.57199, 11.88069, 13.38039, 13.34044, 11.22955, 9.181708, 7.803569,
         6.87104, 6.264443, 6.470644, 5.308203),
    ),
    "t": (
        (212.4864, 208.4042, 213.3201, 218.0615, 222.771, 228.8696, 242.1368, 252.9492, 261.1347,
         267.401, 274.56, 277.3572, 281.013),
        (10.26284, 12.52901, 8.928709, 7.189547, 8.529282, 10.71679, 12.69102, 13.06447, 13.42046,
         14.76523, 15.5888, 16.08798, 17.13983),
    ),
    "q": (
        (2.67818e-06, 2.633677e-06, 5.254625e-06, 1.940632e-05, 5.773618e-05, 1.273861e-04,
         3.855659e-04, 8.529599e-04, 1.541429e-03, 2.431637e-03, 4.575618e-03, 6.033134e-03,
         7.030342e-03),
        (3.571687e-07, 5.703754e-07, 3.794077e-06, 2.267534e-05, 7.446644e-05, 1.684361e-04,
         5.078644e-04, 1.079294e-03, 1.769722e-03, 2.549169e-03, 4.112368e-03, 5.071058e-03,
         5.913548e-03),
    ),
}
# fmt: on
"""Locations and scales of each variable of the air on the `LEVELS`."""
ROOT_AREA = (1.0814085263058073e-4, 511207893.39581096)
"""Shortest and longest wavelength of the encoding of patches' sizes, whose numbers the package takes from
areas (km²) and applies to the roots of areas (km)."""

Floats = NDArray[np.float64]


def published_statistics(
    surface: Sequence[str], air: Sequence[str], levels: Sequence[float]
) -> tuple[Floats, Floats]:
    """Location and scale of each channel, [C] both; NaN where nothing is published.

    Between the published levels both are interpolated in the logarithm of pressure, beyond them there are
    none.
    """
    pairs = [SURFACE.get(short_name(name), (np.nan, np.nan)) for name in surface]
    known, wanted = np.log(LEVELS), np.log(np.asarray(levels, dtype=np.float64))
    for name in air:
        found = AIR.get(short_name(name), ([np.nan] * len(LEVELS),) * 2)
        columns = [np.interp(wanted, known, one, left=np.nan, right=np.nan) for one in found]
        pairs += zip(*columns, strict=True)
    location_C, scale_C = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return location_C, scale_C


def to_published(dataset: Any) -> tuple[Tensor, Tensor]:
    """Factor and offset that turn channels of a dataset, normalised, into those of published weights, [C].

    A channel without published statistics stays as it is.
    """
    location_C, scale_C = published_statistics(dataset.surface, dataset.air, dataset.levels)
    factor_C, offset_C = dataset.std / scale_C, (dataset.mean - location_C) / scale_C
    factor_C, offset_C = np.nan_to_num(factor_C, nan=1.0), np.nan_to_num(offset_C, nan=0.0)
    return torch.from_numpy(factor_C).float(), torch.from_numpy(offset_C).float()


def published_static(dataset: Any) -> Tensor:
    """Static fields of a dataset as published weights expect them, [F, H, W]."""
    fields = np.array(dataset.static, dtype=np.float64)
    for field, name, mean, std in zip(
        fields, dataset.static_names, dataset.static_mean, dataset.static_std, strict=True
    ):
        if (known := STATIC.get(short_static_name(name))) is not None:
            location, scale = known
            field[:] = (field * std + mean - location) / scale
    return torch.from_numpy(fields).float()


def published_encodings(
    latitude_H: Floats, longitude_W: Floats, patch: int, channels: int
) -> tuple[Tensor, Tensor]:
    """Encodings of the position and of the size of each patch, [N, D] both, of the published program.

    Arguments are those of `millrace.systems.weather.aurora.encodings.place_encodings`.
    """
    lat_N, lon_N = F.avg_pool2d(_cells(latitude_H, longitude_W), patch).flatten(1)
    position = [fourier(one, POSITION, channels // 2) for one in (lat_N, lon_N % 360.0)]
    root_area_N = root_areas(latitude_H, longitude_W, patch)
    return torch.cat(position, dim=-1).float(), fourier(root_area_N, ROOT_AREA, channels).float()


def root_areas(latitude_H: Floats, longitude_W: Floats, patch: int) -> Tensor:
    """Root of pi times the area between the centres of the outermost cells of each patch (km), float32[N].

    The shortest wavelengths resolve its rounding, which depends on the processor, in the published program,
    too: PyTorch takes sines from MKL.
    """
    grid_2HW = _cells(latitude_H, longitude_W)
    highest_2N = F.max_pool2d(grid_2HW, patch).flatten(1)
    lowest_2N = -F.max_pool2d(-grid_2HW, patch).flatten(1)
    (north, east), (south, west) = torch.deg2rad(highest_2N), torch.deg2rad(lowest_2N)
    return torch.sqrt(6371**2 * torch.pi * (north.sin() - south.sin()) * (east - west))


def _cells(latitude_H: Floats, longitude_W: Floats) -> Tensor:
    axes = [torch.from_numpy(np.array(axis)).float() for axis in (latitude_H, longitude_W)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))
