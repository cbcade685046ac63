"""Output files of ICON: fields on the cells of a grid, by their coordinates and units.

Shape suffixes: N cells, T time steps, V variables.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cftime
import netCDF4
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from millrace.data.classic_netcdf import check_whole
from millrace.data.declared import check_hdf5
from millrace.data.recognise import kind_of
from millrace.data.shares import runs
from millrace.data.units import common, converted
from millrace.errors import DataError, first_line, listed
from millrace.input_files import check_memory
from millrace.systems.downscaling.icon_source import (
    FieldScreening,
    Floats,
    IconGrid,
    Ints,
    angles,
    check_variable,
    together,
    unit_vectors,
)

CELL_DIMENSIONS = ("ncells", "cell", "i")
NEAR = 1e-4
"""Distance (rad) within which centres of cells are the same."""
EPOCH = "days since 1970-01-01"
_ABSOLUTE = "day as %Y%m%d.%f"
_OURS = ("standard", "gregorian", "proleptic_gregorian")


def is_on_cells(file: Any, name: str) -> bool:
    """Whether a file holds a variable as a field on cells."""
    return name in file.variables and any(one in CELL_DIMENSIONS for one in file[name].dimensions)


@dataclass(frozen=True, eq=False)
class _Output:
    """An output file."""

    path: Path
    time_T: Floats
    kind: str
    """Of its time axis."""
    units: dict[str, str | None]
    """Of those of the variables that it holds."""


class NetcdfFields:
    """Output files of one run on one grid, in order of time; each variable in the unit of its first file.

    Where the cells are is looked up in all files at once, or with ``lazily`` in each when it is read.
    Raises `DataError` if one is on another grid, in another unit that cannot be converted, or does not
    follow those before in time, or if the variables do not have the same times.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        variables: tuple[str, ...],
        grid: IconGrid,
        lazily: bool = False,
    ) -> None:
        self.variables, self._grid = variables, grid
        files, self._lazily = [], lazily
        # Where files have the cells of the grid, [N]; None: in their order.
        self._orders: dict[Path, Ints | None] = {}
        for path in paths:
            with opened(path) as file:
                files.append(_open_output(path, file, variables, grid))
                if not lazily:
                    self._orders[path] = _check_grid(path, file, grid)
        files.sort(key=lambda one: one.time_T[0])
        self._series = [self._files_with(name, files) for name in variables]
        self.time_T = np.concatenate([one.time_T for one in self._series[0]])
        for name, series in zip(variables, self._series, strict=True):
            time_T = np.concatenate([one.time_T for one in series])
            if not np.array_equal(time_T, self.time_T):
                odd = np.setxor1d(time_T, self.time_T)
                when = np.datetime64("1970-01-01") + np.timedelta64(round(odd[0] * 86_400), "s")
                raise DataError(
                    f"{series[0].path}: {name} and {variables[0]} do not have the same times, {when} is "
                    f"one of {len(odd)} that one of them lacks; add the files that are missing"
                )
        self._units = [
            common(one.units[name] for one in series)
            for name, series in zip(variables, self._series, strict=True)
        ]
        for name, unit, series in zip(variables, self._units, self._series, strict=True):
            _check_units(name, unit, series)
        self.units = tuple(unit or "" for unit in self._units)

    @staticmethod
    def _files_with(name: str, files: Sequence[_Output]) -> list[_Output]:
        """Files that hold a variable, which follow each other in time."""
        found = [one for one in files if name in one.units]
        if not found:
            with opened(files[0].path) as file:
                known = [n for n, v in file.variables.items() if v.ndim > 1]
            raise DataError(
                f"{files[0].path}: no variable {name!r}; it has {listed(known, 30) or 'no fields'}"
            )
        for before, after in itertools.pairwise(found):
            if after.kind != before.kind:
                raise DataError(
                    f"{after.path}: its time is {after.kind}, that of {before.path.name} is {before.kind}; "
                    "write all files with one kind of time axis"
                )
            if after.time_T[0] <= before.time_T[-1]:
                raise DataError(
                    f"{after.path}: begins before {before.path.name} ends; remove the file that covers the "
                    "time twice"
                )
        return found

    @property
    def keys(self) -> list[float]:
        """Times, which parts are divided by, see `icon_source.Fields`."""
        return [float(time) for time in self.time_T]

    def groups(self, steps: int, enough: int) -> list[list[range]]:
        """Output times that are read at once, see `icon_source.Fields`; never of two files."""
        spans = (
            range(start, min(start + steps, end))
            for begin, end in itertools.pairwise(self._edges())
            for start in range(begin, end, steps)
        )
        return together(spans, enough)

    def part(
        self, numbers: Sequence[int], steps: int, enough: int
    ) -> tuple[Self, list[list[range]], Ints]:
        """Some times, see `icon_source.Fields`."""
        own, chosen = {*numbers}, []
        for group in self.groups(steps, enough):
            mine = [r for span in group for r in runs(n for n in span if n in own)]
            if mine:
                chosen.append(mine)
        return self, chosen, np.arange(len(numbers) + 1)

    def first(self, steps: int, screening: FieldScreening) -> NDArray[np.float32]:
        """Fields that are read first, see `icon_source.Fields`."""
        [values] = self.slabs(self.groups(steps, 1)[0], screening)
        return values

    def know(self, lengths: Sequence[int], time_T: Floats) -> None:
        """Nothing new: headers of files say their times."""

    def read_from(self, times: Sequence[int]) -> list[Path]:
        """Files that some times are read from, and that of the grid."""
        found = {self._grid.path}
        for series in self._series:
            ends = np.cumsum([len(one.time_T) for one in series])
            at = np.unique(np.searchsorted(ends, np.asarray(times, dtype=np.int64), side="right"))
            found |= {series[k].path for k in at}
        return sorted(found)

    def slabs(
        self, spans: Sequence[range], screening: FieldScreening
    ) -> Iterator[NDArray[np.float32]]:
        """Fields of some times, [T, N, V], see `icon_source.Fields`."""
        ends = [np.cumsum([len(one.time_T) for one in series]) for series in self._series]
        edges = self._edges()
        for edge, of_edge in itertools.groupby(
            spans, lambda span: edges[int(np.searchsorted(edges, span.start, side="right")) - 1]
        ):
            at = [int(np.searchsorted(one, edge, side="right")) for one in ends]
            firsts = [int(one[k - 1]) if k else 0 for one, k in zip(ends, at, strict=True)]
            outputs = [series[k] for series, k in zip(self._series, at, strict=True)]
            with contextlib.ExitStack() as stack:
                opening = {one.path: stack.enter_context(opened(one.path)) for one in {*outputs}}
                if self._lazily:
                    self._orders = {
                        path: self._orders[path]
                        if path in self._orders
                        else _check_grid(path, file, self._grid)
                        for path, file in opening.items()
                    }
                for span in of_edge:
                    values = np.empty((len(span), len(self._grid.lon_N), len(self.variables)), "f4")
                    for column, (output, first) in enumerate(zip(outputs, firsts, strict=True)):
                        part = slice(span.start - first, span.stop - first)
                        file = opening[output.path]
                        values[..., column] = self._read(output, file, column, part, screening)
                    yield values

    def _edges(self) -> list[int]:
        """Times at which a file of any variable begins, and the end."""
        ends = [np.cumsum([len(one.time_T) for one in series]) for series in self._series]
        return [0, *np.unique(np.concatenate(ends)).tolist()]

    def _read(
        self,
        output: _Output,
        file: Any,
        column: int,
        span: slice,
        screening: FieldScreening,
    ) -> NDArray[np.float32]:
        """One variable of one file at some of its times, [T, N]."""
        name, path = self.variables[column], output.path
        variable = file[name]
        dimensions = variable.dimensions
        index = tuple(span if one == "time" else slice(None) for one in dimensions)
        part = np.ma.filled(np.ma.asarray(variable[index]).astype("f4"), np.nan)
        part = np.moveaxis(part, _cell_axis(dimensions), -1)
        if "time" in dimensions:
            rest = [one for one in dimensions if one not in CELL_DIMENSIONS]
            part = np.moveaxis(part, rest.index("time"), 0)
        values = part.reshape(span.stop - span.start, -1)
        order_N = self._orders[path]
        values = values if order_N is None else values[:, order_N]
        missing = ~np.isfinite(values)
        if missing.any():
            step, cell = np.argwhere(missing)[0]
            raise DataError(
                f"{path}: {name} has {missing.sum()} missing or infinite values, the first at time "
                f"{span.start + step}, cell {cell + 1}; fill or leave out those times"
            )
        check_variable(name, values, output.units[name], f"{path}: {name}")
        screening.add(name, output.units[name], values, path, range(span.start, span.stop))
        unit = self._units[column]
        return converted(values, output.units[name], unit, f"{path}: {name}").astype("f4")


def _open_output(path: Path, file: Any, variables: Sequence[str], grid: IconGrid) -> _Output:
    held = [name for name in variables if is_on_cells(file, name)]
    for name in held:
        _check_variable(path, file, name, len(grid.lon_N))
    time_T, kind = read_time(path, file)
    units = {name: str(getattr(file[name], "units", "")).strip() or None for name in held}
    return _Output(path, time_T, kind, units)


def _check_units(name: str, unit: str | None, series: Sequence[_Output]) -> None:
    """Refuse files whose unit of a variable is none, or cannot be turned into that of the others."""
    [first, *_] = [one for one in series if one.units[name] == unit]
    for one in series:
        if one.units[name] is None and unit is not None:
            raise DataError(
                f"{one.path}: {name} has no attribute units, in {first.path.name} it is in {unit!r}; "
                "write the attribute into all files"
            )
        what, like = f"{one.path}: {name}", f" as in {first.path.name}"
        converted(np.zeros(1), one.units[name], unit, what, like)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a NetCDF file of any format; `DataError` if it is truncated or damaged."""
    try:
        check_whole(path)
        check_hdf5(path)
        with netCDF4.Dataset(path) as file:
            yield file
    except (OSError, RuntimeError) as error:
        if what := kind_of(path)[1]:
            raise DataError(f"{path}: not readable as NetCDF; {what}") from error
        raise DataError(
            f"{path}: truncated or damaged NetCDF ({first_line(error)}); transfer or make it again"
        ) from error


def read_time(path: Path, file: Any) -> tuple[Floats, str]:
    """Times of a file in days since 1970, and whether they are ``relative`` or ``absolute``.

    The latter with the calendar, where it is another than ours. Raises `DataError` if there is no time, its
    units are unknown, or it does not increase.
    """
    if "time" not in file.variables:
        raise DataError(f"{path}: no variable 'time'")
    units = str(getattr(file["time"], "units", ""))
    values = np.atleast_1d(np.asarray(file["time"][...], dtype=np.float64))
    if not len(values) or not np.isfinite(values).all():
        raise DataError(f"{path}: its time is empty or has missing values")
    if units.startswith("day as"):
        kind, days = "absolute", _absolute_days(path, values, units)
    else:
        calendar = getattr(file["time"], "calendar", "standard")
        try:
            dates = cftime.num2date(values, units, calendar)
            days = np.asarray(cftime.date2num(dates, EPOCH, calendar), "f8")
            kind = "relative" + ("" if calendar in _OURS else f" in the calendar {calendar}")
        except ValueError:
            raise DataError(
                f"{path}: time has units {units!r}; expected '<unit> since <date>' or {_ABSOLUTE!r}"
            ) from None
    if (still := np.diff(days) <= 0).any():
        raise DataError(f"{path}: time does not increase at index {np.argmax(still) + 1}")
    return days, kind


def _absolute_days(path: Path, values: Floats, units: str) -> Floats:
    if not units.startswith("day as %Y%m%d"):
        raise DataError(f"{path}: time has units {units!r}; expected {_ABSOLUTE!r}")
    whole = np.floor(values).astype(np.int64)
    dates = [f"{f'{day:08d}'[:4]}-{day // 100 % 100:02d}-{day % 100:02d}" for day in whole]
    try:
        days = np.array(dates, dtype="datetime64[D]").astype(np.float64)
    except ValueError:
        raise DataError(f"{path}: time {values[0]} is no date of the form {_ABSOLUTE!r}") from None
    # Eight digits of a double are the date: what is left resolves a millisecond, steps are seconds.
    return days + np.round((values - whole) * 86_400) / 86_400


def _check_grid(path: Path, file: Any, grid: IconGrid) -> Ints | None:
    """Where a file has the cells of a grid, [N]; None: in their order. Refuse a file on another grid."""
    uuid, centres_N3 = getattr(file, "uuidOfHGrid", None), centres_of(path, file)
    is_named = uuid is not None and uuid == grid.uuid
    if centres_N3 is None and is_named:
        return None
    order_N = None if centres_N3 is None else order_of(centres_N3, grid)
    if order_N is not None:
        return None if np.array_equal(order_N, np.arange(len(order_N))) else order_N
    if is_named:
        raise DataError(
            f"{path}: uuidOfHGrid is that of {grid.path.name}, but the centres of its cells are not; mend "
            "the file, its values may belong to other cells"
        )
    raise DataError(
        f"{path}: uuidOfHGrid {uuid} is not that of {grid.path.name} ({grid.uuid}), and the centres of "
        "the cells do not agree either; all output files must be on one grid"
    )


def centres_of(path: Path, file: Any) -> Floats | None:
    """Centres of the cells of an output file as unit vectors, [N, 3], if it has them."""
    for names in (("clon", "clat"), ("lon", "lat")):
        if all(
            name in file.variables
            and file[name].ndim == 1
            and file[name].dimensions[0] in CELL_DIMENSIONS
            for name in names
        ):
            return unit_vectors(*angles_of(path, file, names))
    return None


def order_of(centres_N3: Floats, grid: IconGrid) -> Ints | None:
    """Where each cell of a grid is among other centres, [N]; None if they are not the same cells."""
    wanted_N3 = grid.centres_N3
    if centres_N3.shape != wanted_N3.shape or not np.isfinite(centres_N3).all():
        return None
    if np.linalg.norm(centres_N3 - wanted_N3, axis=1).max() < NEAR:
        return np.arange(len(wanted_N3))
    distance_N, order_N = cKDTree(centres_N3).query(wanted_N3)
    is_same = distance_N.max() < NEAR and len(np.unique(order_N)) == len(order_N)
    return order_N if is_same else None


def _check_variable(path: Path, file: Any, name: str, n_cells: int) -> None:
    times = file["time"].size if "time" in file.variables else 0
    if "time" not in file[name].dimensions and times != 1:
        raise DataError(
            f"{path}: {name} has dimensions {', '.join(file[name].dimensions)} and no time; add the "
            "axis time, or take the file out of the directory"
        )
    sizes = dict(zip(file[name].dimensions, file[name].shape, strict=True))
    cells = sizes.pop(file[name].dimensions[_cell_axis(tuple(sizes))])
    sizes.pop("time", None)
    if any(size != 1 for size in sizes.values()):
        raise DataError(
            f"{path}: {name} has {max(sizes.values())} levels; cut out the one to use, fields are 2-D"
        )
    if cells != n_cells:
        raise DataError(f"{path}: {name} has {cells} cells, the grid of the output {n_cells}")


def _cell_axis(dimensions: tuple[str, ...]) -> int:
    return next(at for at, one in enumerate(dimensions) if one in CELL_DIMENSIONS)


def angles_of(path: Path, file: Any, names: tuple[str, str]) -> tuple[Floats, Floats]:
    """Longitudes and latitudes of a file in radian, by their units."""
    lon_N, lat_N = (whole(file[name]) for name in names)
    units = [str(getattr(file[name], "units", "")).strip() or None for name in names]
    return angles(lon_N, lat_N, (units[0], units[1]), f"{path}: its grid")


def whole(variable: Any) -> Floats:
    """Values of a variable, flat, NaN where it declares that there is none."""
    check_memory(Path(variable.group().filepath()), 8.0 * variable.size, variable.name)
    values: Floats = np.ma.filled(np.ma.asarray(variable[:], dtype="f8"), np.nan)
    return values.reshape(-1)
