"""Numbers that carry their unit, their origin and their uncertainty."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MEASURED, MODELLED, EXTRAPOLATED = "measured", "modelled", "extrapolated"
LABELS = (MEASURED, MODELLED, EXTRAPOLATED)
"""Origins of a number, most certain first. *measured*: taken from a clock or counter on that layout.
*modelled*: computed, for numbers of ranks up to the largest measured one. *extrapolated*: computed beyond
it, up to `MAX_EXTRAPOLATION` times as many."""

MAX_EXTRAPOLATION = 2.0
"""Largest number of ranks that is predicted, as a multiple of the largest measured one."""


@dataclass(frozen=True)
class Quantity:
    """A number with its unit, its label (one of `LABELS`) and, where known, its 95 % interval."""

    value: float
    unit: str
    label: str
    low: float | None = None
    high: float | None = None

    def times(self, factor: float, unit: str) -> "Quantity":
        """Return the product with a positive number, in another unit."""
        low, high = (None if side is None else side * factor for side in (self.low, self.high))
        return Quantity(self.value * factor, unit, self.label, low, high)

    def over(self, numerator: float, unit: str) -> "Quantity":
        """Return ``numerator`` divided by this quantity, in another unit; `low` and `high` swap roles."""
        low, high = (None if not side else numerator / side for side in (self.high, self.low))
        return Quantity(numerator / self.value, unit, self.label, low, high)


@dataclass(frozen=True)
class Refusal:
    """A result that the data do not support, and the reason."""

    what: str
    reason: str


def least_certain(*labels: str) -> str:
    """Return the label of a number that is computed from numbers with these labels."""
    return max(labels, key=LABELS.index)


def label_at(ranks: int, measured: Iterable[int]) -> str | None:
    """Return the label of a prediction for a number of ranks; None: too far beyond those measured."""
    largest = max(measured)
    if ranks > MAX_EXTRAPOLATION * largest:
        return None
    return EXTRAPOLATED if ranks > largest else MODELLED


def format_number(value: float) -> str:
    """Return a number with three significant digits, or all digits before the point from 1,000 upwards."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def format_seconds(value: float) -> str:
    """Return a time with the unit that suits it."""
    if abs(value) < 1e-9:  # below the resolution of every clock
        return "0 s"
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if value >= (2 if size >= 60 else 1) * size:
            return f"{format_number(value / size)} {unit}"
    return f"{format_number(value * 1e6)} µs"


def format_scaled(value: float, unit: str) -> str:
    """Return a number with a decimal prefix before its unit."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{format_number(value / size)} {prefix}{unit}"
    return f"{format_number(value)} {unit}"
