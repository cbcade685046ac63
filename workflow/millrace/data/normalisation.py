"""Statistics by which samples are normalised; they travel with a run, so that it can predict new data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Statistics of a training period, and the box of the domain.

    Shape suffixes: V variables, F forcings, D dimensions of space.
    """

    variables: tuple[str, ...]
    mean_V: Floats
    std_V: Floats
    increment_std_V: Floats
    """Standard deviation of one-step changes."""
    forcings: tuple[str, ...]
    forcing_mean_F: Floats
    forcing_std_F: Floats
    low_D: Floats
    """Smallest coordinates of the domain (m)."""
    high_D: Floats

    def to_json(self) -> dict[str, Any]:
        """Plain values, by name; `from_json` gives the same numbers back, bit by bit."""
        fields = zip(self.mean_V, self.std_V, self.increment_std_V, strict=True)
        given = zip(self.forcing_mean_F, self.forcing_std_F, strict=True)
        return {
            "variables": {
                name: {"mean": float(mean), "std": float(std), "increment_std": float(change)}
                for name, (mean, std, change) in zip(self.variables, fields, strict=True)
            },
            "forcings": {
                name: {"mean": float(mean), "std": float(std)}
                for name, (mean, std) in zip(self.forcings, given, strict=True)
            },
            "box": [self.low_D.tolist(), self.high_D.tolist()],
        }

    @classmethod
    def from_json(
        cls, values: Mapping[str, Any], variables: Sequence[str], forcings: Sequence[str]
    ) -> "Normalisation":
        """Read what `to_json` gave.

        Parameters
        ----------
        values : mapping
        variables, forcings : sequence of str
            What the samples hold, in this order.

        Raises
        ------
        DataError
            Something is missing.
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

    def unit(self, coords_ND: Floats) -> Floats:
        """Map coordinates (m) to the unit cube of the domain; what lies outside goes beyond 0 and 1."""
        return (coords_ND - self.low_D) / np.maximum(self.high_D - self.low_D, 1e-12)


def _column(records: Sequence[Mapping[str, float]], key: str) -> Floats:
    return np.array([float(record[key]) for record in records], dtype=np.float64)
