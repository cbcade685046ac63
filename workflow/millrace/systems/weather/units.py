"""Units of weather variables: what they are kept in, and what is turned into that."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.errors import DataError

SCHEMA = "millrace.weather/1"
"""Of ``weather.h5``."""

SI = {
    "2t": "K",
    "10u": "m s**-1",
    "10v": "m s**-1",
    "msl": "Pa",
    "z": "m**2 s**-2",
    "u": "m s**-1",
    "v": "m s**-1",
    "t": "K",
    "q": "kg kg**-1",
}
"""Units of the variables by short name."""

_SAME = {
    "k": "K", "kelvin": "K", "pa": "Pa", "pascal": "Pa",
    "m s**-1": "m s**-1", "m/s": "m s**-1", "m s-1": "m s**-1", "m s^-1": "m s**-1",
    "m**2 s**-2": "m**2 s**-2", "m2/s2": "m**2 s**-2", "m2 s-2": "m**2 s**-2", "j/kg": "m**2 s**-2",
    "kg kg**-1": "kg kg**-1", "kg/kg": "kg kg**-1", "kg kg-1": "kg kg**-1", "1": "kg kg**-1",
}  # fmt: skip
_SCALED = {
    "degc": ("K", 1.0, 273.15), "celsius": ("K", 1.0, 273.15), "c": ("K", 1.0, 273.15),
    "hpa": ("Pa", 100.0, 0.0), "mbar": ("Pa", 100.0, 0.0), "millibar": ("Pa", 100.0, 0.0),
    "km/h": ("m s**-1", 1 / 3.6, 0.0), "knots": ("m s**-1", 1852 / 3600, 0.0),
    "m": ("m**2 s**-2", 9.80665, 0.0), "gpm": ("m**2 s**-2", 9.80665, 0.0),
    "g/kg": ("kg kg**-1", 1e-3, 0.0), "g kg**-1": ("kg kg**-1", 1e-3, 0.0),
}  # fmt: skip


def conversion(name: str, unit: str) -> tuple[float, float] | None:
    """Factor and offset from a unit to that of the variable; None: not a unit of it."""
    key = unit.strip().lower()
    wanted = SI.get(name)
    if wanted is None or _SAME.get(key) == wanted:
        return 1.0, 0.0
    target, factor, offset = _SCALED.get(key, ("", 1.0, 0.0))
    return (factor, offset) if target == wanted else None


def to_si(name: str, values: NDArray[Any], variable: Any, path: Path) -> NDArray[np.float64]:
    """Turn values into the unit of `SI`; without an attribute ``units`` they are taken to be in it.

    Raises `DataError` if the unit is not known for this variable.
    """
    unit = str(variable.attrs.get("units", SI.get(name, "")))
    factors = conversion(name, unit)
    if factors is None:
        raise DataError(
            f"{path}: {variable.name} is in {unit!r}; expected {SI[name]!r}, convert it or mend its "
            "attribute units"
        )
    return values * factors[0] + factors[1]
