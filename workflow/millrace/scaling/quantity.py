"""Numbers that say where they come from."""

from collections.abc import Iterable
from dataclasses import dataclass

MEASURED, MODELLED, EXTRAPOLATED = "measured", "modelled", "extrapolated"
LABELS = (MEASURED, MODELLED, EXTRAPOLATED)
"""*measured*: taken from a clock or counter on that layout. *modelled*: computed, for numbers of ranks
up to the largest measured one. *extrapolated*: computed beyond it, up to `REACH` times as many."""

REACH = 2.0
"""Predictions go up to this multiple of the largest measured number of ranks, and no further."""


@dataclass(frozen=True)
class Quantity:
    """A number with its unit, label and, where known, 95 % interval."""

    value: float
    unit: str
    label: str
    low: float | None = None
    high: float | None = None

    def times(self, factor: float, unit: str) -> "Quantity":
        """Multiplied by a positive number, in another unit."""
        low, high = (None if side is None else side * factor for side in (self.low, self.high))
        return Quantity(self.value * factor, unit, self.label, low, high)

    def over(self, numerator: float, unit: str) -> "Quantity":
        """``numerator`` divided by it, in another unit; the ends of the interval change places."""
        low, high = (None if not side else numerator / side for side in (self.high, self.low))
        return Quantity(numerator / self.value, unit, self.label, low, high)


@dataclass(frozen=True)
class Refusal:
    """Something that the data do not support, and why."""

    what: str
    reason: str

    @property
    def sentence(self) -> str:
        """Both in one."""
        return f"{self.what}: {self.reason}."


def weakest(labels: Iterable[str]) -> str:
    """Label of a number computed from others: that of the least certain of them."""
    return max(labels, key=LABELS.index)


def label_at(ranks: int, measured: Iterable[int]) -> str | None:
    """Label of a prediction for a number of ranks; None: too far from what was measured."""
    largest = max(measured)
    if ranks > REACH * largest:
        return None
    return EXTRAPOLATED if ranks > largest else MODELLED
