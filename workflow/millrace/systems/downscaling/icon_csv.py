"""Small ICON cases as CSV: ``grid.csv`` and any number of other files in long form.

``grid.csv`` has a row for each cell: ``cell`` (from 1), ``clon``, ``clat`` (radian, or degrees if one
exceeds a full turn), ``cell_area``, ``neighbor_1`` to ``neighbor_3`` and ``parent_1``, ``parent_2`` ...,
the ancestor one, two ... levels up; optional ``elevation`` (m) and ``land`` (share). The other files have
``time,cell,clon,clat`` and the fields, times as ISO 8601, sorted by time; a time is never split between
files.

Shape suffixes: N cells, T time steps, V variables.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from millrace.data.account import Account
from millrace.data.csv_lines import header_of, read_rows
from millrace.errors import DataError
from millrace.systems.downscaling.icon_source import (
    FieldScreening,
    Floats,
    IconGrid,
    IconSource,
    check_variable,
    unit_vectors,
)
from millrace.systems.settings import MissingConfig

ROWS = 200_000
"""Rows read at a time."""


def open_csv(
    directory: Path,
    variables: Sequence[str],
    levels: int,
    missing: MissingConfig | None,
    account: Account,
) -> IconSource:
    """Open a directory with a ``grid.csv``; `DataError` as in `icon.open_source`."""
    path = directory / "grid.csv"
    table = pd.concat(read_rows(path))
    parents = [f"parent_{level + 1}" for level in range(levels)]
    neighbours = ["neighbor_1", "neighbor_2", "neighbor_3"]
    for name in ("cell", "clon", "clat", "cell_area", *neighbours, *parents):
        if name not in table:
            raise DataError(f"{path}: no column {name!r}; levels = {levels} needs {parents[-1]!r}")
    needed = ["cell", "clon", "clat", "cell_area", *neighbours, *parents]
    blank = np.argwhere(table[needed].isna().to_numpy())
    if len(blank):
        row, column = blank[0]
        raise DataError(f"{path}:{table.index[row]}: {needed[column]} is blank; expected a number")
    if not np.array_equal(table["cell"], np.arange(len(table)) + 1):
        raise DataError(f"{path}: column 'cell' must count the rows from 1")
    names = ("clon", "clat", "cell_area", "elevation", "land")
    columns = {name: table[name].to_numpy(np.float64) for name in names if name in table}
    lon, lat = columns["clon"], columns["clat"]
    degrees = max(np.abs(lon).max(), np.abs(lat).max()) > 2 * np.pi + 0.01
    if degrees:
        lon, lat = np.deg2rad(lon), np.deg2rad(lat)
    finest = IconGrid(
        path,
        lon,
        lat,
        columns["cell_area"],
        np.maximum(table[neighbours].to_numpy(np.int64) - 1, -1),
        table["parent_1"].to_numpy(np.int64) - 1,
        elevation_N=columns.get("elevation"),
        land_N=columns.get("land"),
    )
    files = sorted(p for p in directory.rglob("*.csv") if p.name != "grid.csv")
    if not files:
        raise DataError(f"{directory}: no CSV file with fields beside grid.csv")
    account.keep("files", 1 + len(files))
    coarser = (_ancestor(path, table[[*pair]] - 1) for pair in itertools.pairwise(parents))
    return IconSource(
        (finest, *coarser),
        CsvFields(files, tuple(variables), len(table), finest.centres_N3, bool(degrees), missing),
    )


class CsvFields:
    """Fields in long form; `DataError` if a file lacks a column or a time lacks a cell.

    Where files repeat the centres of the cells, ``clon`` and ``clat``, they must be ``centres_N3`` of the
    grid, unit vectors; ``degrees``: they are not in radian.
    """

    units: tuple[str, ...]

    def __init__(
        self,
        paths: Sequence[Path],
        variables: tuple[str, ...],
        n_cells: int,
        centres_N3: Floats | None = None,
        degrees: bool = False,
        missing: MissingConfig | None = None,
    ) -> None:
        self._missing = missing
        self.variables, self.units = variables, ("",) * len(variables)
        self._paths, self._n_cells = list(paths), n_cells
        self._centres_N3, self._degrees = centres_N3, degrees
        times: list[Floats] = []
        for path in paths:
            header = header_of(path)
            for name in ("time", "cell", *variables):
                if name not in header:
                    raise DataError(f"{path}: no column {name!r}; it has {', '.join(header)}")
            parts = (table["time"].drop_duplicates() for table in read_rows(path, (), ROWS))
            found = _days(path, pd.concat(parts).drop_duplicates())
            if (np.diff(np.concatenate([*times[-1:], found])) <= 0).any():
                raise DataError(f"{path}: times must increase, also from file to file (by name)")
            times.append(found)
        self.time_T = np.concatenate(times)

    def slabs(self, steps: int) -> Iterator[NDArray[np.float32]]:
        """Fields of at most ``steps`` output times after each other, [T, N, V]."""
        self._screening = FieldScreening(self._missing)
        for path in self._paths:
            rest, self._checked = pd.DataFrame(), False
            for chunk in read_rows(path, ("cell", "clon", "clat", *self.variables), ROWS):
                table = pd.concat([rest, chunk]) if len(rest) else chunk
                whole = len(table) // self._n_cells * self._n_cells
                yield from self._slabs_of(path, table[:whole], steps)
                rest = table[whole:]
            if len(rest):
                raise DataError(
                    f"{path}: the last time has {len(rest)} of {self._n_cells} cells; every time needs all"
                )
        self._screening.check()

    def _slabs_of(
        self, path: Path, table: pd.DataFrame, steps: int
    ) -> Iterator[NDArray[np.float32]]:
        if not len(table):
            return
        cell = table["cell"].to_numpy().reshape(-1, self._n_cells)
        time = table["time"].to_numpy().reshape(-1, self._n_cells)
        complete = (np.sort(cell, axis=1) == np.arange(self._n_cells) + 1).all(axis=1)
        complete &= (time == time[:, :1]).all(axis=1)
        if not complete.all():
            raise DataError(
                f"{path}: time {time[~complete][0][0]} does not have each cell 1 to {self._n_cells} once"
            )
        columns: NDArray = table[list(self.variables)].to_numpy(np.float32)
        values = columns.reshape(*cell.shape, len(self.variables))
        missing = ~np.isfinite(values).all(axis=2)
        if missing.any():
            step, row = np.argwhere(missing)[0]
            line = table.index[step * self._n_cells + row]
            raise DataError(
                f"{path}:{line}: {missing.sum()} rows have missing or infinite values, the first at time "
                f"{time[step, 0]}, cell {cell[step, row]}; fill or leave out those times"
            )
        self._check(path, table, values[0])
        order = np.argsort(cell, axis=1)[..., None]
        values = np.take_along_axis(values, order, axis=1)
        times = list(dict.fromkeys(time[:, 0]))
        for column, name in enumerate(self.variables):
            self._screening.add(name, None, values[..., column], path, times)
        for start in range(0, len(values), steps):
            yield values[start : start + steps]

    def _check(self, path: Path, table: pd.DataFrame, values_NV: NDArray) -> None:
        """Refuse rows whose cell is elsewhere than in the grid, and values in another unit."""
        if not self._checked:
            for name, values_N in zip(self.variables, values_NV.T, strict=True):
                check_variable(name, values_N, None, f"{path}: {name}")
            self._checked = True
        if self._centres_N3 is None or not {"clon", "clat"} <= set(table):
            return
        lon, lat = (table[name].to_numpy(np.float64) for name in ("clon", "clat"))
        found = unit_vectors(*(np.deg2rad(one) if self._degrees else one for one in (lon, lat)))
        distance = np.linalg.norm(found - self._centres_N3[table["cell"].to_numpy(int) - 1], axis=1)
        # Tables are often rounded: half way to the next cell it is another one.
        wrong = np.flatnonzero(~(distance < 0.5 * np.sqrt(4 * np.pi / self._n_cells)))
        if len(wrong):
            raise DataError(
                f"{path}:{table.index[wrong[0]]}: clon and clat are not those of cell "
                f"{table['cell'].iloc[wrong[0]]:g} of grid.csv; mend the cell or its place"
            )


def _ancestor(path: Path, pairs: pd.DataFrame) -> IconGrid:
    """A coarser grid as far as it is needed: which cell lies in which."""
    own, parent = pairs.to_numpy(np.int64).T
    parents = np.full(own.max() + 1, -1)
    parents[own] = parent
    empty = np.empty(0)
    return IconGrid(path, empty, empty, empty, np.empty((0, 3), np.int64), parents)


def _days(path: Path, times: "pd.Series[Any]") -> Floats:
    try:
        moments = pd.to_datetime(times.astype(str), format="ISO8601")
    except ValueError:
        raise DataError(
            f"{path}: column 'time' must be ISO 8601, such as 2020-01-31T06:00; found {times.iloc[0]}"
        ) from None
    days = (moments - pd.Timestamp(1970, 1, 1)) / pd.Timedelta(days=1)
    return np.asarray(days, dtype=np.float64)
