"""Names of weather variables in files, the units they are kept in, and what their values may be."""

import warnings

import numpy as np
from numpy.typing import NDArray

from millrace.data.units import (
    SEA_LEVEL_PRESSURE,
    SURFACE_PRESSURE,
    TEMPERATURE,
    Quantity,
    check_plausible,
    conversion,
)
from millrace.errors import DataError

SCHEMA = "millrace.weather/1"
"""Of ``weather.h5``."""

SI = {
    "2t": "K",
    "10u": "m s**-1",
    "10v": "m s**-1",
    "msl": "Pa",
    "sp": "Pa",
    "z": "m**2 s**-2",
    "u": "m s**-1",
    "v": "m s**-1",
    "t": "K",
    "q": "kg kg**-1",
}
"""Units of the variables by short name."""
STATIC_SI = {"z": "m**2 s**-2", "lsm": "1"}
"""Units of the static fields."""

ALIASES = {
    "2t": ("2m_temperature", "2t", "t2m", "tas"),
    "10u": ("10m_u_component_of_wind", "10u", "u10", "uas"),
    "10v": ("10m_v_component_of_wind", "10v", "v10", "vas"),
    "msl": ("mean_sea_level_pressure", "msl", "psl"),
    "sp": ("surface_pressure", "sp", "ps"),
    "z": ("geopotential", "z", "zg"),
    "u": ("u_component_of_wind", "u", "ua"),
    "v": ("v_component_of_wind", "v", "va"),
    "t": ("temperature", "t", "ta"),
    "q": ("specific_humidity", "q", "hus"),
}
"""Names in files by the short name of ECMWF: those of WeatherBench 2, GRIB, NetCDF of the CDS, CMIP."""
STATIC_ALIASES = {
    "z": ("geopotential_at_surface", "surface_geopotential", "orog", "geopotential", "z"),
    "slt": ("soil_type", "slt"),
    "lsm": ("land_sea_mask", "lsm", "sftlf"),
}
"""The same for static fields; of ``geopotential`` and ``z`` those without levels."""

_QUANTITIES = {
    "2t": TEMPERATURE,
    "t": TEMPERATURE,
    "msl": SEA_LEVEL_PRESSURE,
    "sp": SURFACE_PRESSURE,
}
_GRAVITY = 9.80665
_RISE = 500.0
"""m**2 s**-2; no level lies that much below one of higher pressure."""
_HIGHEST = 9_000.0
"""No mountain of the Earth reaches this (m)."""


def short_name(name: str) -> str:
    """Short name of ECMWF of a variable under any of its names."""
    return next((short for short, known in ALIASES.items() if name in known), name)


def short_static_name(name: str) -> str:
    """The same of a field that does not change."""
    return next((short for short, known in STATIC_ALIASES.items() if name in known), name)


def check_units(
    name: str, values_LIJ: NDArray, unit: str | None, level_L: NDArray, what: str
) -> None:
    """Refuse a field whose values are plausible in another unit than the file says, or is assumed.

    ``level_L`` are the pressure levels (hPa) of variables of the air; ``what`` is for messages. Warns if
    the values are plausible in no usual unit.
    """
    name = short_name(name)
    quantity, values = _QUANTITIES.get(name), values_LIJ
    if name == "z":
        _check_falling(values_LIJ, unit, level_L, what)
        # Far from the ground the height of a pressure level is known within a factor of two.
        top = int(np.argmin(level_L))
        height = 44_331 * (1 - (level_L[top] / 1013.25) ** 0.19026)
        low, high = height * _GRAVITY / 3, 3 * height * _GRAVITY
        others = ("m**2 s**-2", "m")
        quantity = Quantity("m**2 s**-2", low, high, others) if level_L[top] <= 850 else None
        values = values_LIJ[top]
    if name == "q":
        bottom = int(np.argmax(level_L))
        low = 2e-4 if level_L[bottom] >= 700 else -1.0
        quantity = Quantity("kg kg**-1", low, 0.04, ("kg kg**-1", "g kg**-1"))
        values = values_LIJ[bottom]
    warning = check_plausible(quantity, values, unit, what) if quantity else None
    if warning:
        warnings.warn(warning, stacklevel=2)


def _check_falling(values_LIJ: NDArray, unit: str | None, level_L: NDArray, what: str) -> None:
    """Refuse geopotential that rises with pressure: its levels are not those that the axis says."""
    order = np.argsort(level_L)
    mean_L = values_LIJ.mean(axis=(1, 2), dtype=np.float64)[order]
    factors = conversion(unit or SI["z"], SI["z"])
    rises = np.flatnonzero(np.diff(mean_L) * (factors[0] if factors else 1.0) > _RISE)
    if len(rises):
        upper, lower = level_L[order][rises[0] : rises[0] + 2]
        first, second = mean_L[rises[0] : rises[0] + 2]
        raise DataError(
            f"{what} has a mean of {first:.6g} at {upper:g} hPa and {second:.6g} at {lower:g} hPa, but it "
            "falls with pressure on the Earth; mend the axis of levels"
        )


def check_static(name: str, values_IJ: NDArray, unit: str | None, what: str) -> None:
    """The same for a static field."""
    largest = float(np.max(values_IJ, initial=0.0))
    said = "has no attribute units" if unit is None else f"is said to be in {unit!r}"
    message = f"{what} {said}, but its largest value of {largest:.6g} looks like"
    if name == "lsm":
        factors = conversion(unit or "1", "1")
        share = largest * (factors[0] if factors else 1.0)
        if share > 1.01:
            raise DataError(f"{message} '%'; write the right unit")
        if 0 < share < 0.011 and share < largest:  # there is land on the globe
            raise DataError(f"{message} '1'; write the right unit")
    if name == "z":
        factors = conversion(unit or STATIC_SI["z"], "m**2 s**-2")
        height = largest * (factors[0] if factors else 0.0) / _GRAVITY
        if height > _HIGHEST >= largest / _GRAVITY:
            raise DataError(f"{message} 'm**2 s**-2'; write the right unit")
        if 0 < height < _HIGHEST / _GRAVITY:
            likely = "'m'" if largest > 20 else "'km'"
            if unit is None:
                raise DataError(f"{message} {likely}; write the unit")
            warnings.warn(f"{message} {likely}; check it", stacklevel=2)
