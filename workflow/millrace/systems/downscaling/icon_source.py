"""What a directory of ICON files gives, in whatever format it is: grids, and fields on the finest of them.

Shape suffixes: N cells, T time steps, V variables.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from millrace.data.units import (
    SEA_LEVEL_PRESSURE,
    SURFACE_PRESSURE,
    TEMPERATURE,
    Quantity,
    check_plausible,
    conversion,
    converted,
)
from millrace.data.validity import Screening
from millrace.errors import DataError
from millrace.systems.settings import MissingConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


_TEMPERATURES: tuple[str, ...] = (
    "tas",
    "t2m",
    "t_2m",
    "2t",
    "temp",
    "ta",
    "t",
    "ts",
    "t_g",
    "tasmax",
    "tasmin",
)
_TEMPERATURES += ("tmax_2m", "tmin_2m", "td_2m", "d2m", "2d", "tdps", "t_s", "skt", "t_sk", "tos")
_QUANTITIES = {
    TEMPERATURE: _TEMPERATURES,
    SEA_LEVEL_PRESSURE: ("psl", "pres_msl", "msl", "slp", "mslp"),
    SURFACE_PRESSURE: ("ps", "sp", "pres_sfc"),
    Quantity("kg kg-1", 0.0, 0.04, ("kg kg-1", "g kg-1")): ("huss", "qv_2m", "hus", "qv", "q"),
    Quantity("%", 2.0, 110.0, ("%", "1")): ("hurs", "rh_2m", "relhum_2m", "hur", "relhum"),
}
"""Names of variables whose range is known."""
_FAR = 5.0
"""Ratio of distances between neighbours, and of areas to their squares; on a refined icosahedron they vary
by less than two."""
_LOPSIDED = 0.3
_AT_ONCE = 1 << 18
"""Cells that are compared with their neighbours at once."""
_HIGHEST = 12_000.0  # m, also below the sea


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

    def check(self) -> None:
        """Raise `DataError` if places, areas and neighbours contradict each other or are no numbers.

        Centres that belong to other cells are told by neighbours that are far from each other.
        """
        self._check_numbers()
        cells = np.arange(len(self.lon_N))
        if self.neighbours_N3.max() >= len(cells):
            raise DataError(
                f"{self.path}: neighbor_cell_index names cell {self.neighbours_N3.max() + 1} of "
                f"{len(cells)}; is the file cut out of a larger one?"
            )
        centres_N3, distances = self.centres_N3, []
        # A grid without a rim covers the globe.
        middle = np.linalg.norm(np.average(centres_N3, axis=0, weights=self.area_N))
        if (self.neighbours_N3 >= 0).all() and middle > _LOPSIDED:
            raise DataError(
                f"{self.path}: the grid has no rim, but its cells do not cover the globe; clon and clat "
                "are perhaps radians said to be degrees, mend their attribute units"
            )
        for other_N in self.neighbours_N3.T:
            known = other_N >= 0
            back, apart = np.empty(len(cells), dtype=bool), np.empty(len(cells))
            for at in range(0, len(cells), _AT_ONCE):
                part = slice(at, at + _AT_ONCE)
                other = other_N[part]
                back[part] = (self.neighbours_N3[other] == cells[part, None]).any(axis=1)
                apart[part] = np.linalg.norm(centres_N3[part] - centres_N3[other], axis=1)
            if (wrong := known & ~back).any():
                cell = int(np.argmax(wrong))
                raise DataError(
                    f"{self.path}: cell {other_N[cell] + 1} is a neighbour of cell {cell + 1}, but not the "
                    "other way round; mend neighbor_cell_index, or copy the file again"
                )
            distances.append(np.where(known, apart, np.nan))
        distance_N3 = np.stack(distances, axis=1)
        beside_N = np.isfinite(distance_N3).sum(axis=1)
        if not beside_N.any():
            return
        least = float(np.nanmin(distance_N3))
        if (far := distance_N3 > _FAR * least).any():
            cell = int(np.argmax(far.any(axis=1)))
            raise DataError(
                f"{self.path}: a neighbour of cell {cell + 1} is {np.nanmax(distance_N3[cell]):.3g} rad "
                f"away, others {least:.3g}: the centres, clon and clat, are not those of these cells; copy "
                "the file again, or mend them"
            )
        # Triangles of all sizes have the same shape, about: 1.3 times the square of the distance.
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # a cell without neighbours has no room
            shape_N = self.area_N * beside_N / np.nansum(distance_N3**2, axis=1)
        shape_N = np.where(beside_N > 0, shape_N / np.median(shape_N[beside_N > 0]), 1)
        if (odd := (shape_N > _FAR) | (shape_N < 1 / _FAR)).any():
            cell = int(np.argmax(odd))
            raise DataError(
                f"{self.path}: cell_area of cell {cell + 1} is {self.area_N[cell]:g}, {shape_N[cell]:.3g} "
                "times what its neighbours leave room for; mend cell_area, or copy the file again"
            )

    def _check_numbers(self) -> None:
        columns = (
            ("clon", self.lon_N),
            ("clat", self.lat_N),
            ("cell_area", self.area_N),
            ("elevation", self.elevation_N),
            ("land", self.land_N),
        )
        for name, values_N in columns:
            if values_N is None:
                continue
            wrong = ~np.isfinite(values_N) | ((values_N <= 0) if name == "cell_area" else False)
            if wrong.any():
                cell = int(np.argmax(wrong))
                raise DataError(
                    f"{self.path}: {name} of cell {cell + 1} is {values_N[cell]:g}; expected a "
                    f"{'positive ' if name == 'cell_area' else ''}number for each cell"
                )
            # Surface below the sea is data, and so is an area of 1e10 m².
            screening = Screening(possible=(-500.0, 9_000.0) if name == "elevation" else None)
            screening.add(values_N)
            for suspect in screening.suspects():
                at = f" at cell {suspect.index + 1}"
                raise DataError(f"{self.path}: {suspect.sentence(name, '', at)}")
        if self.elevation_N is not None and np.abs(self.elevation_N).max() > _HIGHEST:
            raise DataError(
                f"{self.path}: elevation reaches {np.abs(self.elevation_N).max():g} m; expected metres, "
                "convert it or mend its attribute units"
            )
        if self.land_N is not None and (self.land_N.min() < 0 or self.land_N.max() > 1.01):
            raise DataError(
                f"{self.path}: land reaches from {self.land_N.min():g} to {self.land_N.max():g}; expected "
                "shares from 0 to 1, or per cent"
            )


class Fields(Protocol):
    """Time series of fields on the cells of a grid."""

    time_T: Floats
    """Days since 1970, increasing."""
    variables: tuple[str, ...]
    units: tuple[str, ...]

    @property
    def keys(self) -> Sequence[float | str]:
        """What parts are divided by, in the order of time: times, or the names of files."""

    def groups(self, steps: int, enough: int) -> list[list[range]]:
        """Output times that are read at once, at most ``steps`` and at least one, in their order.

        Those that follow on each other are together until they have ``enough`` times, as the last ones of
        a file may not have.
        """

    def part(
        self, numbers: Sequence[int], steps: int, enough: int
    ) -> tuple["Fields", list[list[range]], Ints]:
        """Some of the `keys`: fields that have them, their `groups` there, and bounds of the times of each.

        What is not among them need not be read.
        """

    def slabs(
        self, spans: Sequence[range], screening: "FieldScreening"
    ) -> Iterator[NDArray[np.float32]]:
        """Fields of some times, ascending, [T, N, V], each range in one of the `groups`."""

    def first(self, steps: int, screening: "FieldScreening") -> NDArray[np.float32]:
        """Fields of the times that are read at once first."""

    def know(self, lengths: Sequence[int], time_T: Floats) -> None:
        """Take the times of all `keys`, as parts found them, instead of reading them."""

    def read_from(self, times: Sequence[int]) -> list[Path]:
        """Files that some times are read from."""


def together(spans: Iterable[range], enough: int) -> list[list[range]]:
    """Ranges that follow on each other, together until they have ``enough`` times."""
    groups: list[list[range]] = []
    for span in spans:
        if not groups or sum(map(len, groups[-1])) >= enough:
            groups.append([])
        groups[-1].append(span)
    return groups


@dataclass(frozen=True, eq=False)
class IconSource:
    """A directory, opened: chain of grids from the one of the fields to the coarsest, and the fields."""

    grids: tuple[IconGrid, ...]
    fields: Fields


def unit_vectors(lon_N: Floats, lat_N: Floats) -> Floats:
    """Points of the unit sphere from angles (rad) of any shape, [..., 3]."""
    equator = np.cos(lat_N)
    return np.stack([equator * np.cos(lon_N), equator * np.sin(lon_N), np.sin(lat_N)], axis=-1)


def angles(
    lon_N: Floats, lat_N: Floats, units: tuple[str | None, str | None], what: str
) -> tuple[Floats, Floats]:
    """Longitudes and latitudes in radian; units None: degrees if they are no angles in radian.

    Raises `DataError` if a unit is none of an angle, or a latitude lies beyond the pole.
    """
    largest = float(np.abs(lon_N).max()), float(np.abs(lat_N).max())
    beyond = largest[0] > 2 * np.pi + 0.01 or largest[1] > np.pi / 2 + 0.01
    found = []
    for name, values_N, unit in zip(("longitude", "latitude"), (lon_N, lat_N), units, strict=True):
        factors = conversion(unit or ("degree" if beyond else "radian"), "radian")
        if factors is None:
            raise DataError(f"{what} has a {name} in {unit!r}; expected 'radian' or 'degree'")
        found.append(values_N if factors == (1.0, 0.0) else np.deg2rad(values_N))
    lon_N, lat_N = found
    if np.abs(lat_N).max() > np.pi / 2 + 0.01 or np.abs(lon_N).max() > 2 * np.pi + 0.01:
        raise DataError(
            f"{what} has longitudes to {largest[0]:g} and latitudes to {largest[1]:g} in "
            f"{units[1] or 'degree'!r}; expected places on the globe, mend the attribute units"
        )
    return lon_N, lat_N


def check_variable(name: str, values_TN: NDArray, unit: str | None, what: str) -> None:
    """Refuse a unit of something else, or one in which some times are not plausible but in another.

    Only variables whose range is known are checked; a warning says that they are plausible in none.
    """
    quantity = next((q for q, names in _QUANTITIES.items() if name.lower() in names), None)
    if quantity is None:
        return
    converted(np.zeros(1), unit, quantity.unit, what)
    mean_T = values_TN.mean(axis=1, dtype=np.float64)
    for step in sorted({0, int(mean_T.argmin()), int(mean_T.argmax())}):
        if warning := check_plausible(quantity, values_TN[step], unit, what):
            warnings.warn(warning, stacklevel=2)
            return


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

    def evidence(self) -> list[dict[str, Any]]:
        """What may be no-data values among all that was added, for `refuse_no_data`."""
        return [
            {"of": [name, unit], "seen": screening.to_json(partial(self._place, pieces))}
            for (name, unit), (screening, pieces) in self._found.items()
        ]

    def _place(
        self, pieces: Sequence[tuple[Path, Sequence[object]]], number: int, index: int
    ) -> tuple[str, str]:
        """File, and time and cell in words."""
        path, times = pieces[number]
        step, cell = divmod(index, self._cells)
        return str(path), f" at time {times[step]}, cell {cell + 1}"


def refuse_no_data(
    evidence: Iterable[Iterable[Mapping[str, Any]]], missing: MissingConfig | None
) -> None:
    """Raise `DataError` for a no-data value in what `FieldScreening.evidence` says of ranges of times.

    The message names the most frequent one, with file, time and cell.
    """
    merged: dict[tuple[Any, ...], tuple[Screening, list[Any]]] = {}
    for one in itertools.chain.from_iterable(evidence):
        new: tuple[Screening, list[Any]] = (Screening.of(missing), [])
        screening, places = merged.setdefault(tuple(one["of"]), new)
        screening.add_seen(one["seen"], places)
    for (name, _), (screening, places) in merged.items():
        for suspect in screening.suspects():
            path, at = places[suspect.piece]
            raise DataError(f"{path}: {suspect.sentence(name, 'missing', at)}")
