"""Units of raw data of all systems: how they are spelt, what they are in each other, what is plausible.

Spellings are those of CF, UDUNITS, ECMWF and people: ``m s-1``, ``m/s``, ``m s**-1``, ``m^2/s^2``,
``degC``, ``degrees_C``, ``mb``, ``g kg-1``. General libraries read some of them as something else (``mb``
as millibarn, ``C`` as coulomb, ``gpm`` as gallons per minute), and would change the last digit of factors.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from millrace.errors import DataError

_BASE = ("kg", "m", "s", "K", "rad", "mol")
_NONE = {
    "", "1", "-", "~", "none", "dimensionless", "unitless", "numeric", "number", "fraction",
    "proportion", "ratio", "(0 - 1)", "0-1", "(0-1)",
}  # fmt: skip

# Symbol: factor to the base units, and powers of `_BASE`. Prefixes are allowed for those in _PREFIXED.
_SYMBOLS: dict[str, tuple[float, dict[str, int]]] = {
    "g": (1e-3, {"kg": 1}), "t": (1e3, {"kg": 1}), "m": (1.0, {"m": 1}), "s": (1.0, {"s": 1}),
    "K": (1.0, {"K": 1}), "rad": (1.0, {"rad": 1}), "mol": (1.0, {"mol": 1}),
    "Pa": (1.0, {"kg": 1, "m": -1, "s": -2}), "bar": (1e5, {"kg": 1, "m": -1, "s": -2}),
    "b": (1e5, {"kg": 1, "m": -1, "s": -2}), "atm": (101325.0, {"kg": 1, "m": -1, "s": -2}),
    "N": (1.0, {"kg": 1, "m": 1, "s": -2}), "J": (1.0, {"kg": 1, "m": 2, "s": -2}),
    "W": (1.0, {"kg": 1, "m": 2, "s": -3}), "l": (1e-3, {"m": 3}), "L": (1e-3, {"m": 3}),
    "min": (60.0, {"s": 1}), "h": (3600.0, {"s": 1}), "d": (86400.0, {"s": 1}),
    "a": (31557600.0, {"s": 1}), "ft": (0.3048, {"m": 1}), "mi": (1609.344, {"m": 1}),
    "kn": (1852 / 3600, {"m": 1, "s": -1}), "mph": (0.44704, {"m": 1, "s": -1}),
    "deg": (float(np.pi) / 180, {"rad": 1}), "%": (1e-2, {}), "ppm": (1e-6, {}),
    "gpm": (9.80665, {"m": 2, "s": -2}),
}  # fmt: skip
_PREFIXED = {"g", "m", "s", "Pa", "bar", "b", "l", "L", "J", "W", "N", "mol"}
_PREFIXES = {"h": 1e2, "k": 1e3, "M": 1e6, "d": 1e-1, "c": 1e-2, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_WORDS = {
    "kelvin": "K", "kelvins": "K", "pascal": "Pa", "pascals": "Pa", "hectopascal": "hPa",
    "hectopascals": "hPa", "millibar": "mbar", "millibars": "mbar", "mbars": "mbar", "bars": "bar",
    "meter": "m", "meters": "m", "metre": "m", "metres": "m", "kilometer": "km",
    "kilometers": "km", "kilometre": "km", "kilometres": "km", "foot": "ft", "feet": "ft",
    "mile": "mi", "miles": "mi", "sec": "s", "second": "s", "seconds": "s", "minute": "min",
    "minutes": "min", "hr": "h", "hour": "h", "hours": "h", "hrs": "h", "day": "d", "days": "d",
    "year": "a", "years": "a", "yr": "a", "gram": "g", "grams": "g", "kilogram": "kg",
    "kilograms": "kg", "liter": "l", "liters": "l", "litre": "l", "litres": "l", "joule": "J",
    "joules": "J", "watt": "W", "watts": "W", "kt": "kn", "kts": "kn", "knot": "kn", "knots": "kn",
    "kph": "km/h", "kmh": "km/h", "radian": "rad", "radians": "rad", "degree": "deg",
    "degrees": "deg", "°": "deg", "degrees_north": "deg", "degrees_east": "deg",
    "degree_north": "deg", "degree_east": "deg", "percent": "%", "pct": "%",
    "geopotential_meter": "gpm", "geopotential_meters": "gpm",
    **dict.fromkeys(("masl", "m asl", "m a.s.l.", "mamsl", "m amsl", "m a.m.s.l."), "m"),
}  # fmt: skip
_CELSIUS = re.compile(r"(°|deg(ree)?s?[ _]?)?(c|celsius)")
_FAHRENHEIT = re.compile(r"(°|deg(ree)?s?[ _]?)?(f|fahrenheit)")
_KELVIN = re.compile(r"(°|deg(ree)?s?[ _]?)(k|kelvin)")
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻µμ·×", "0123456789-uu  ")
_FACTOR = re.compile(r"([A-Za-z_°%]+)\^?([+-]?\d+)?")


@dataclass(frozen=True)
class _Unit:
    factor: float
    offset: float
    powers: tuple[int, ...]


def conversion(unit: str, wanted: str) -> tuple[float, float] | None:
    """Factor and offset from one unit to another, ``values * factor + offset``.

    None if a unit is not known, or the two do not measure the same. A length is also a geopotential: it is
    multiplied with standard gravity.
    """
    found, goal = _read(unit), _read(wanted)
    if found is None or goal is None:
        return None
    if found.powers == goal.powers:
        if found == goal:
            return 1.0, 0.0
        return found.factor / goal.factor, (found.offset - goal.offset) / goal.factor
    if found.powers == _powers({"m": 1}) and goal.powers == _powers({"m": 2, "s": -2}):
        return found.factor * 9.80665 / goal.factor, 0.0
    return None


def factor(unit: str, wanted: str) -> float:
    """Factor from one known unit to another that has the same zero."""
    found = conversion(unit, wanted)
    assert found is not None, (unit, wanted)
    assert found[1] == 0, (unit, wanted)
    return found[0]


@cache
def _read(text: str) -> _Unit | None:
    """Parse a unit; None: it is not one that is known."""
    plain = " ".join(text.strip().translate(_POWERS).replace("**", "^").split())
    low = plain.lower()
    if low in _NONE or low.startswith("code table"):
        return _Unit(1.0, 0.0, _powers({}))
    if _CELSIUS.fullmatch(low):
        return _Unit(1.0, 273.15, _powers({"K": 1}))
    if _FAHRENHEIT.fullmatch(low):
        return _Unit(5 / 9, 273.15 - 32 * 5 / 9, _powers({"K": 1}))
    if _KELVIN.fullmatch(low):
        return _Unit(1.0, 0.0, _powers({"K": 1}))
    plain = _WORDS.get(low, plain)
    factor, total = 1.0, dict.fromkeys(_BASE, 0)
    # Dots and stars multiply, and so do blanks; a slash divides by what follows it next.
    plain = re.sub(r"\bper\b", "/", plain)
    divides = False
    for token in (
        re.sub(r"(?<=[A-Za-z0-9])[*.](?=[A-Za-z])", " ", plain).replace("/", " / ").split()
    ):
        if token == "/":
            if divides:
                return None
            divides = True
            continue
        one = _factor(token)
        if one is None:
            return None
        sign = -1 if divides else 1
        factor *= one[0] ** sign
        for base, power in one[1].items():
            total[base] += sign * power
        divides = False
    return None if divides else _Unit(factor, 0.0, _powers(total))


def _factor(token: str) -> tuple[float, dict[str, int]] | None:
    """A symbol with its power."""
    if token == "1":
        return 1.0, {}
    match = _FACTOR.fullmatch(token)
    symbol = match and _symbol(match[1])
    if not match or not symbol:
        return None
    power = int(match[2] or 1)
    if abs(power) > 9:
        return None
    return symbol[0] ** power, {base: power * n for base, n in symbol[1].items()}


def _symbol(name: str) -> tuple[float, dict[str, int]] | None:
    # Files write PA, hpa and KG, too; case counts where it tells units apart (m and M, K and k).
    for spelt in (name, _WORDS.get(name.lower(), ""), *_CASES.get(name.lower(), ())):
        if spelt in _SYMBOLS:
            return _SYMBOLS[spelt]
        if spelt[:1] in _PREFIXES and spelt[1:] in _PREFIXED:
            # A decimal of its own, so that 1 kg is 1 and not 1e3 * 1e-3 in binary.
            factor = float(f"{_PREFIXES[spelt[0]] * _SYMBOLS[spelt[1:]][0]:.15g}")
            return factor, _SYMBOLS[spelt[1:]][1]
    return None


_CASES = {
    name.lower(): (name,)
    for name in (
        "K",
        "Pa",
        "hPa",
        "kPa",
        "J",
        "mbar",
        "mb",
        "bar",
        "kg",
        "g",
        "m",
        "km",
        "s",
        "gpm",
    )
}


def _powers(of: dict[str, int]) -> tuple[int, ...]:
    return tuple(of.get(base, 0) for base in _BASE)


def converted(
    values: NDArray, unit: str | None, wanted: str | None, what: str, like: str = ""
) -> NDArray:
    """Values in the unit ``wanted``; ``unit`` None: the file does not say, they are taken as they are.

    ``what`` names file and variable for the message, ``like`` says where the wanted unit comes from. Raises
    `DataError` if the unit is unknown or measures something else.
    """
    if unit is None or wanted is None or unit == wanted:
        return values
    factors = conversion(unit, wanted)
    if factors is None:
        raise DataError(
            f"{what} is in {unit!r}; expected {wanted!r}{like}, convert it or mend its attribute units"
        )
    if factors == (1.0, 0.0):
        return values
    return values.astype(np.float64) * factors[0] + factors[1]


@dataclass(frozen=True)
class Quantity:
    """Where the mean of a field over the globe lies, and units in which people write it."""

    unit: str
    low: float
    high: float
    others: Sequence[str]

    def likely(self, mean: float, unit: str) -> str | None:
        """The unit that a mean is likely in although ``unit`` is said; None if that is plausible.

        Empty if no usual unit makes the mean plausible.
        """
        if self._holds(mean, unit):
            return None
        return next((other for other in self.others if self._holds(mean, other)), "")

    def _holds(self, mean: float, unit: str) -> bool:
        factors = conversion(unit, self.unit)
        return factors is None or self.low <= mean * factors[0] + factors[1] <= self.high


TEMPERATURE = Quantity("K", 180.0, 340.0, ("K", "degC", "degF"))
SEA_LEVEL_PRESSURE = Quantity("Pa", 85_000.0, 115_000.0, ("Pa", "hPa", "kPa"))
SURFACE_PRESSURE = Quantity("Pa", 40_000.0, 115_000.0, ("Pa", "hPa", "kPa"))


def check_plausible(quantity: Quantity, values: NDArray, unit: str | None, what: str) -> str | None:
    """Refuse values that are plausible in another unit than the one they are said to be in.

    ``unit`` None: the file does not say, values count as in that of the quantity. Returns a warning if
    they are plausible in no usual unit.
    """
    mean = float(np.mean(values, dtype=np.float64))
    likely = quantity.likely(mean, quantity.unit if unit is None else unit)
    if likely is None:
        return None
    said = "has no attribute units" if unit is None else f"is said to be in {unit!r}"
    if likely:
        raise DataError(
            f"{what} {said}, but its mean of {mean:.6g} looks like {likely!r}; convert it, or mend the "
            "attribute units"
        )
    return (
        f"{what} {said}, but a mean of {mean:.6g} is neither plausible in {quantity.unit!r} nor in "
        f"{', '.join(other for other in quantity.others if other != quantity.unit)}"
    )


def common(units: Iterable[str | None]) -> str | None:
    """The first unit that is said; None if none is."""
    return next((unit for unit in units if unit is not None), None)
