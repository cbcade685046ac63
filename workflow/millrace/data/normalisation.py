"""Statistics by which samples are normalised; a run stores them, so that it can predict new data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Statistics of a training period, and the bounding box of the domain.

    Shape suffixes: V variables, F forcings, D dimensions of space, N points.
    """

    variables: tuple[str, ...]
    mean_V: Floats
    std_V: Floats
    increment_std_V: Floats
    """Standard deviation of changes over one step."""
    forcings: tuple[str, ...]
    forcing_mean_F: Floats
    forcing_std_F: Floats
    low_D: Floats
    """Smallest coordinates of the domain (m)."""
    high_D: Floats
    """Largest coordinates of the domain (m)."""

    def to_json(self) -> dict[str, Any]:
        """Plain values by name, from which `from_json` restores the same numbers bit by bit."""
        fields = {"mean": self.mean_V, "std": self.std_V, "increment_std": self.increment_std_V}
        given = {"mean": self.forcing_mean_F, "std": self.forcing_std_F}
        return {
            "variables": _by_name(self.variables, fields),
            "forcings": _by_name(self.forcings, given),
            "box": [self.low_D.tolist(), self.high_D.tolist()],
        }

    @classmethod
    def from_json(
        cls, values: Mapping[str, Any], variables: Sequence[str], forcings: Sequence[str]
    ) -> "Normalisation":
        """Restore the statistics of ``variables`` and ``forcings``, in this order, from `to_json`.

        Raises `DataError` if a value is missing or not a number.
        """
        try:
            fields = [values["variables"][name] for name in variables]
            given = [values["forcings"][name] for name in forcings]
            low, high = (np.array(corner, dtype=np.float64) for corner in values["box"])
            return cls(
                variables=tuple(variables),
                mean_V=_column(fields, "mean"),
                std_V=_column(fields, "std"),
                increment_std_V=_column(fields, "increment_std"),
                forcings=tuple(forcings),
                forcing_mean_F=_column(given, "mean"),
                forcing_std_F=_column(given, "std"),
                low_D=low,
                high_D=high,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"normalisation of the receipt: {error} is missing or not readable"
            ) from None

    def unit_coords(self, coords_ND: Floats) -> Floats:
        """Map coordinates (m), [N, D], to the unit cube; points outside the domain go beyond 0 and 1."""
        return (coords_ND - self.low_D) / np.maximum(self.high_D - self.low_D, 1e-12)


def _by_name(names: Sequence[str], columns: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    return {n: {k: float(c[i]) for k, c in columns.items()} for i, n in enumerate(names)}


def _column(records: Sequence[Mapping[str, float]], key: str) -> Floats:
    return np.array([float(record[key]) for record in records], dtype=np.float64)
