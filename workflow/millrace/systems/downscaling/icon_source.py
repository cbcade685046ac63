"""What a directory of ICON files gives, in whatever format it is: grids, and fields on the finest of them.

Shape suffixes: N cells, T time steps, V variables.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from millrace.data.units import (
    SEA_LEVEL_PRESSURE,
    SURFACE_PRESSURE,
    TEMPERATURE,
    check_plausible,
)
from millrace.data.validity import Screening
from millrace.errors import DataError
from millrace.systems.settings import MissingConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


_QUANTITIES = {
    TEMPERATURE: ("tas", "t2m", "t_2m", "2t", "temp", "ta", "t", "ts", "t_g", "tasmax", "tasmin"),
    SEA_LEVEL_PRESSURE: ("psl", "pres_msl", "msl", "slp", "mslp"),
    SURFACE_PRESSURE: ("ps", "sp", "pres_sfc"),
}
"""Names of variables whose range is known."""


@dataclass(frozen=True, eq=False)
class IconGrid:
    """Triangles of one level of refinement."""

    path: Path
    lon_N: Floats
    """Centres (rad)."""
    lat_N: Floats
    area_N: Floats
    """In any unit."""
    neighbours_N3: Ints
    """Cells across the edges; -1 at the rim of a limited area."""
    parent_N: Ints
    """Cells of the next coarser grid, which ``parent_uuid`` names; -1 where there is none."""
    uuid: str | None = None
    parent_uuid: str | None = None
    name: str = ""
    elevation_N: Floats | None = None
    """Height of the surface (m)."""
    land_N: Floats | None = None
    """Share of land."""

    @property
    def centres_N3(self) -> Floats:
        """Unit vectors."""
        return unit_vectors(self.lon_N, self.lat_N)


class Fields(Protocol):
    """Time series of fields on the cells of a grid."""

    time_T: Floats
    """Days since 1970, increasing."""
    variables: tuple[str, ...]
    units: tuple[str, ...]

    def slabs(self, steps: int) -> Iterator[NDArray[np.float32]]:
        """Fields of at most ``steps`` output times after each other, [T, N, V]."""


@dataclass(frozen=True, eq=False)
class IconSource:
    """A directory, opened: chain of grids from the one of the fields to the coarsest, and the fields."""

    grids: tuple[IconGrid, ...]
    fields: Fields


def unit_vectors(lon_N: Floats, lat_N: Floats) -> Floats:
    """Points of the unit sphere from angles (rad) of any shape, [..., 3]."""
    equator = np.cos(lat_N)
    return np.stack([equator * np.cos(lon_N), equator * np.sin(lon_N), np.sin(lat_N)], axis=-1)


def check_variable(name: str, values_N: NDArray, unit: str | None, what: str) -> None:
    """Refuse values that are plausible in another unit than is said, of variables whose range is known.

    A warning says that they are plausible in none.
    """
    quantity = next((q for q, names in _QUANTITIES.items() if name.lower() in names), None)
    warning = check_plausible(quantity, values_N, unit, what) if quantity else None
    if warning:
        warnings.warn(warning, stacklevel=2)


class FieldScreening:
    """Looks for no-data values in fields that are read some steps at a time."""

    def __init__(self, missing: MissingConfig | None) -> None:
        self._missing = missing
        self._found: dict[
            tuple[str, str | None], tuple[Screening, list[tuple[Path, Sequence[object]]]]
        ] = {}

    def add(
        self, name: str, unit: str | None, values_TN: NDArray, path: Path, times: Sequence[object]
    ) -> None:
        """Add steps of a variable in the unit of its file."""
        new: tuple[Screening, list[tuple[Path, Sequence[object]]]] = (
            Screening.of(self._missing),
            [],
        )
        screening, pieces = self._found.setdefault((name, unit), new)
        screening.add(values_TN)
        pieces.append((path, times))
        self._cells = values_TN.shape[1]

    def check(self) -> None:
        """Raise `DataError` for the most frequent no-data value, with file, time and cell."""
        for (name, _), (screening, pieces) in self._found.items():
            for suspect in screening.suspects():
                path, times = pieces[suspect.piece]
                step, cell = divmod(suspect.index, self._cells)
                at = f" at time {times[step]}, cell {cell + 1}"
                raise DataError(f"{path}: {suspect.sentence(name, 'missing', at)}")
