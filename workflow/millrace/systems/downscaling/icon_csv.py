"""Small ICON cases as CSV: ``grid.csv`` and any number of other files in long form.

``grid.csv`` has a row for each cell: ``cell`` (from 1), ``clon``, ``clat`` (radian, or degrees if one lies
beyond a pole or a full turn), ``cell_area``, ``neighbor_1`` to ``neighbor_3``, ``parent_1`` ..., the
ancestor one, two ... levels up; optional ``elevation`` (m) and ``land`` (share). The other files have
``time,cell,clon,clat`` and the fields, times as ISO 8601, sorted by time; a time is never split between
files.

Shape suffixes: N cells, T time steps, V variables.
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from millrace.data.account import Account
from millrace.data.csv_lines import header_of, read_rows
from millrace.errors import DataError, listed
from millrace.input_files import files_below
from millrace.systems.downscaling.icon_source import (
    FieldScreening,
    Floats,
    IconGrid,
    IconSource,
    Ints,
    angles,
    check_variable,
    together,
    unit_vectors,
)

ROWS = 200_000
"""Rows read at a time."""


def open_csv(
    directory: Path,
    variables: Sequence[str],
    levels: int,
    account: Account,
    lazily: bool = False,
) -> IconSource:
    """Open a directory with a ``grid.csv``; `DataError` as in `icon.open_source`."""
    path = directory / "grid.csv"
    table = pd.concat(read_rows(path))
    parents = [f"parent_{level + 1}" for level in range(levels)]
    neighbours = ["neighbor_1", "neighbor_2", "neighbor_3"]
    for name in ("cell", "clon", "clat", "cell_area", *neighbours, *parents):
        if name not in table:
            raise DataError(f"{path}: no column {name!r}; levels = {levels} needs {parents[-1]!r}")
    names = ["cell", "clon", "clat", "cell_area", *neighbours, *parents]
    names += [name for name in ("elevation", "land") if name in table]
    for name in names:
        whole = name in ("cell", *neighbours, *parents)
        wrong = table[name].isna() | ((table[name] % 1 != 0) if whole else False)
        if wrong.any():
            row = int(np.argmax(wrong))
            shown = "blank" if np.isnan(table[name].iloc[row]) else f"{table[name].iloc[row]:g}"
            expected = "a whole number" if whole else "a number"
            raise DataError(f"{path}:{table.index[row]}: {name} is {shown}; expected {expected}")
    if not np.array_equal(table["cell"], np.arange(len(table)) + 1):
        raise DataError(f"{path}: column 'cell' must count the rows from 1")
    columns = {name: table[name].to_numpy(np.float64) for name in names}
    lon, lat = angles(columns["clon"], columns["clat"], (None, None), f"{path}: its grid")
    degrees = lon is not columns["clon"]
    for name in parents:
        wrong = (table[name] < 1) | (table[name] > len(table))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{path}:{table.index[row]}: {name} is {table[name].iloc[row]:g}; expected the number of a "
                f"coarser cell, from 1 and below {len(table)}"
            )
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
    finest.check()
    files = [p for p in files_below(directory, "*.csv") if p.name != "grid.csv"]
    if not files:
        raise DataError(f"{directory}: no CSV file with fields beside grid.csv")
    account.keep("files", 1 + len(files))
    coarser = (_ancestor(path, table[[*pair]] - 1) for pair in itertools.pairwise(parents))
    return IconSource(
        (finest, *coarser),
        CsvFields(
            directory, files, tuple(variables), len(table), finest.centres_N3, degrees, lazily
        ),
    )


class CsvFields:
    """Fields in long form; `DataError` if a file lacks a column or a time lacks a cell.

    Where files repeat the centres of the cells, ``clon`` and ``clat``, they must be ``centres_N3`` of the
    grid, unit vectors; ``degrees``: they are not in radian. With ``lazily`` times are not known but of a
    `part`, or once they are told.
    """

    units: tuple[str, ...]

    def __init__(
        self,
        directory: Path,
        paths: Sequence[Path],
        variables: tuple[str, ...],
        n_cells: int,
        centres_N3: Floats | None = None,
        degrees: bool = False,
        lazily: bool = False,
    ) -> None:
        self.variables, self.units = variables, ("",) * len(variables)
        self._directory, self._paths, self._n_cells = directory, list(paths), n_cells
        self._centres_N3, self._degrees = centres_N3, degrees
        if not lazily:
            times = [self._times(path) for path in paths]
            self.know([*map(len, times)], np.concatenate(times) if times else np.empty(0))

    @property
    def keys(self) -> list[str]:
        """Names of the files, which parts are divided by, see `icon_source.Fields`."""
        return [path.relative_to(self._directory).as_posix() for path in self._paths]

    def know(self, lengths: Sequence[int], time_T: Floats) -> None:
        """Take the times of all files, see `icon_source.Fields`; `DataError` if they do not increase."""
        self.time_T, self._ends = time_T, [0, *itertools.accumulate(lengths)]
        if (wrong := np.diff(time_T) <= 0).any():
            at = bisect.bisect(self._ends, int(np.argmax(wrong)) + 1) - 1
            raise DataError(
                f"{self._paths[at]}: times must increase, also from file to file (by name)"
            )

    def part(
        self, numbers: Sequence[int], steps: int, enough: int
    ) -> tuple["CsvFields", list[list[range]], Ints]:
        """Some files, see `icon_source.Fields`."""
        mine = CsvFields(
            self._directory,
            [self._paths[n] for n in numbers],
            self.variables,
            self._n_cells,
            self._centres_N3,
            self._degrees,
        )
        return mine, mine.groups(steps, enough), np.array(mine._ends)

    def first(self, steps: int, screening: FieldScreening) -> NDArray[np.float32]:
        """Fields that are read first, see `icon_source.Fields`."""
        return next(self._slabs_of(self._paths[0], steps, screening))

    def read_from(self, times: Sequence[int]) -> list[Path]:
        """Files that some times are read from, and that of the grid."""
        files = {bisect.bisect(self._ends, time) - 1 for time in times}
        return [self._directory / "grid.csv", *(self._paths[n] for n in sorted(files))]

    def _times(self, path: Path) -> Floats:
        """Times of a file, each of which has a row for each cell."""
        header = header_of(path)
        for name in ("time", "cell", *self.variables):
            if name not in header:
                raise DataError(f"{path}: no column {name!r}; it has {listed(header, 30)}")
        changes, last, end = dict[int, str](), "", 2
        for table in read_rows(path, (), ROWS):
            text = table["time"].astype(str).str.strip()
            starts = text[text != text.shift(fill_value=last)]
            changes |= dict(zip(starts.index, starts, strict=True))
            last, end = text.iloc[-1], int(table.index[-1]) + 1
        for line, following in itertools.pairwise([*changes, end]):
            if following - line != self._n_cells:
                raise DataError(
                    f"{path}:{line}: time {changes[line]} has {following - line} rows in a row; expected "
                    f"{self._n_cells}, one for each cell"
                )
        return _days(path, changes)

    def groups(self, steps: int, enough: int) -> list[list[range]]:
        """Output times that are read at once, see `icon_source.Fields`; groups are of one file."""
        steps = self._at_once(steps)
        return [
            group
            for begin, end in itertools.pairwise(self._ends)
            for group in together(
                (range(start, min(start + steps, end)) for start in range(begin, end, steps)),
                enough,
            )
        ]

    def slabs(
        self, spans: Sequence[range], screening: FieldScreening
    ) -> Iterator[NDArray[np.float32]]:
        """Fields of all times of some files, [T, N, V], see `icon_source.Fields`."""
        for path, (begin, end) in zip(self._paths, itertools.pairwise(self._ends), strict=True):
            mine = [span for span in spans if begin <= span.start < end]
            if mine:
                yield from self._slabs_of(path, len(mine[0]), screening)

    def _at_once(self, steps: int) -> int:
        """Times of a slab, so many that tables of more than `ROWS` rows are not made."""
        return min(steps, max(1, ROWS // self._n_cells))

    def _slabs_of(
        self, path: Path, steps: int, screening: FieldScreening
    ) -> Iterator[NDArray[np.float32]]:
        """Slabs of a file."""
        rest, rows = pd.DataFrame(), self._at_once(steps) * self._n_cells
        for chunk in itertools.chain(
            read_rows(path, ("cell", "clon", "clat", *self.variables), ROWS), [None]
        ):
            table = rest if chunk is None else pd.concat([rest, chunk]) if len(rest) else chunk
            while len(table) >= rows or (chunk is None and len(table)):
                yield self._slab(path, table[:rows], screening)
                table = table[rows:]
            rest = table

    def _slab(
        self, path: Path, table: pd.DataFrame, screening: FieldScreening
    ) -> NDArray[np.float32]:
        cell = table["cell"].to_numpy().reshape(-1, self._n_cells)
        time = table["time"].to_numpy().reshape(-1, self._n_cells)
        complete = (np.sort(cell, axis=1) == np.arange(self._n_cells) + 1).all(axis=1)
        if not complete.all():
            step = int(np.argmin(complete))
            line = table.index[step * self._n_cells]
            raise DataError(
                f"{path}:{line}: time {time[step, 0]} does not have each cell 1 to {self._n_cells} once"
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
        self._check(path, table, values)
        order = np.argsort(cell, axis=1)[..., None]
        values = np.take_along_axis(values, order, axis=1)
        times = list(dict.fromkeys(time[:, 0]))
        for column, name in enumerate(self.variables):
            screening.add(name, None, values[..., column], path, times)
        return values

    def _check(self, path: Path, table: pd.DataFrame, values_TNV: NDArray) -> None:
        """Refuse rows whose cell is elsewhere than in the grid, and values in another unit."""
        for column, name in enumerate(self.variables):
            check_variable(name, values_TNV[..., column], None, f"{path}: {name}")
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
    if (wrong := parents[own] != parent).any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{path}:{pairs.index[row]}: {pairs.columns[1]} is {parent[row] + 1}, other cells in the same "
            f"{pairs.columns[0]} {own[row] + 1} have {parents[own[row]] + 1}; expected one parent of each"
        )
    empty = np.empty(0)
    return IconGrid(path, empty, empty, empty, np.empty((0, 3), np.int64), parents)


def _days(path: Path, times: Mapping[int, str]) -> Floats:
    """Days since 1970 of times, given by their line; without a zone they are UTC."""
    moments = pd.to_datetime(pd.Series(times), format="ISO8601", utc=True, errors="coerce")
    if (wrong := moments.isna()).any():
        line = list(times)[int(np.argmax(wrong))]
        raise DataError(
            f"{path}:{line}: time {times[line]!r}; expected ISO 8601, such as 2020-01-31T06:00"
        )
    days = (moments - pd.Timestamp(1970, 1, 1, tz="UTC")) / pd.Timedelta(days=1)
    return np.asarray(days, dtype=np.float64)
