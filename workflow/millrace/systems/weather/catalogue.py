"""Which file holds which variable at which time and level: states are put together by label.

Files may be divided by time, variable and level in any way, and have their axes in any order.

Shape suffixes: T times, C channels, F static fields, L levels, I latitudes, J longitudes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from millrace.data.account import Account
from millrace.data.units import converted
from millrace.data.validity import Screening
from millrace.errors import DataError, listed
from millrace.input_files import check_memory
from millrace.systems.weather.grids import MULTIPLE, goes_round
from millrace.systems.weather.grown import signature
from millrace.systems.weather.series import Series, unit_of
from millrace.systems.weather.settings import WeatherConfig, WeatherExtraction
from millrace.systems.weather.source import (
    Floats,
    Ints,
    Source,
    locate,
    same_cells,
)
from millrace.systems.weather.units import (
    ALIASES,
    STATIC_ALIASES,
    STATIC_SI,
    check_static,
    short_name,
)

ALL_BYTES = 1 << 30
"""What is read of all variables at once, at most."""
_PER_BYTE = 3  # bytes of memory for one of a state in the files
BLOCK_BYTES = 8 << 20
"""States that are handed on at once."""


@dataclass(frozen=True)
class Grid:
    """Axes of the states."""

    level: Floats
    """hPa, ascending."""
    latitude: Floats
    """Degrees, descending."""
    longitude: Floats
    """Degrees, ascending: from 0 on, or in an area from its west on."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.latitude), len(self.longitude)


def grid_of(files: Sequence[tuple[Path, xr.Dataset]], config: WeatherConfig) -> Grid:
    """Axes of the states by those of the files, whose variables need not be there yet."""
    sources = [locate(path, data, config.area) for path, data in _relevant(files, config)]
    present = np.unique(np.concatenate([source.level_L for source in sources]))
    level = np.sort(np.array(config.levels or present, dtype=float))
    return Grid(level, sources[0].latitude, sources[0].longitude)


class Catalogue:
    """States of all files as one series.

    Raises `DataError` if a variable, level or time is missing or there twice, a file is on another grid, or
    a unit is not known.
    """

    def __init__(
        self, source: Path, files: Sequence[tuple[Path, xr.Dataset]], config: WeatherExtraction
    ) -> None:
        self._source, self._config = source, config
        found = _relevant(files, config)
        self._files = {path for path, _ in files}
        sources = [locate(path, data, config.area) for path, data in found]
        for other in sources[1:]:
            if not same_cells(sources[0], other):
                raise DataError(
                    f"{other.path}: its latitudes or longitudes are not those of {sources[0].path}; keep "
                    "files of one grid together"
                )
        self._sources = sources
        in_air = dict.fromkeys(config.surface, False) | dict.fromkeys(config.air, True)
        self._holders = {name: self._with_variable(name, is_air) for name, is_air in in_air.items()}
        self._used = {
            (self._sources[s].path, str(variable.name))
            for holders in self._holders.values()
            for s, variable in holders
        }
        present = {
            float(level)
            for name in config.air
            for s, _ in self._holders[name]
            for level in sources[s].level_L
        }
        level = np.sort(np.array(config.levels or sorted(present), dtype=float))
        self.grid = Grid(level, sources[0].latitude, sources[0].longitude)
        self._series = {}
        for name, is_air in in_air.items():
            holders = [(sources[s], variable) for s, variable in self._holders[name]]
            levels = level if is_air else None
            self._series[name] = Series(name, holders, levels, self.grid.shape, config.missing)
        self._locate_times()
        per_state = sum(series.bytes_per_state for series in self._series.values())
        check_memory(source, _PER_BYTE * per_state, "one state")
        for series in self._series.values():
            series.divide(max(1, ALL_BYTES // max(1, per_state)))

    def _with_variable(self, name: str, in_air: bool) -> list[tuple[int, xr.DataArray]]:
        """Files that hold a variable with the right axes; number of the file and the variable."""
        holders, other = [], None
        known = _known(name)
        allowed = {"time", "latitude", "longitude", *(["level"] if in_air else [])}
        for number, source in enumerate(self._sources):
            fitting = []
            for variable in _named(source.data, known):
                has_level = "level" in variable.dims or (in_air and len(source.level_L) == 1)
                if set(variable.dims) <= allowed and has_level == in_air and len(source.second_T):
                    fitting.append(variable)
                else:
                    other = other or (source.path, variable)
            if len(fitting) > 1:
                both = " and ".join(str(variable.name) for variable in fitting[:2])
                raise DataError(f"{source.path}: {both} are both {name}; leave one out")
            holders += [(number, variable) for variable in fitting]
        if holders:
            return holders
        if other is not None:
            path, variable = other
            expected = ["time", *(["level"] if in_air else []), "latitude", "longitude"]
            raise DataError(
                f"{path}: {variable.name} has the axes {', '.join(map(str, variable.dims))}; expected "
                f"{', '.join(expected)}"
            )
        raise self._missing(name, known)

    def _missing(self, name: str, known: Sequence[str]) -> DataError:
        names = sorted({str(v) for source in self._sources for v in source.data.data_vars})
        one = self._sources[0].path if len(self._sources) == 1 else self._source
        return DataError(
            f"{one}: no variable {known[0]!r} (for {name}); it has {listed(names, 30)}"
        )

    def _locate_times(self) -> None:
        seconds = [
            self._sources[s].second_T for holders in self._holders.values() for s, _ in holders
        ]
        hours = np.unique(np.concatenate(seconds)) / 3600.0
        every = len(hours)
        if self._config.years is not None:
            hours = _within(hours, self._config.years, self._source)
        self._other_years = every - len(hours)
        kept = _every(hours, self._config.hours, self._source)
        self.time: Floats = hours[kept] / 24.0
        self._times = len(hours)
        for series in self._series.values():
            series.locate_times(np.round(hours[kept] * 3600.0).astype(np.int64))

    def __len__(self) -> int:
        return len(self.time)

    @property
    def steps_per_chunk(self) -> int:
        """States that are stored together in the source, the most of all variables."""
        return max(series.steps_per_chunk for series in self._series.values())

    def blocks(self, times: range) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """States of a range of times, some at once: index of the first one, and float32[S, C, I, J].

        The array is used again for the next ones. Raises `DataError` if a value is not finite.
        """
        channels = len(self._config.surface) + len(self._config.air) * len(self.grid.level)
        state = 4 * channels * self.grid.shape[0] * self.grid.shape[1]
        rows = min(len(times), max(1, BLOCK_BYTES // state))
        every_SCIJ = np.empty((rows, channels, *self.grid.shape), dtype=np.float32)
        for begin in times[:: max(1, rows)]:
            block_SCIJ = every_SCIJ[: times.stop - begin]
            channel = 0
            for series in self._series.values():
                part = block_SCIJ[:, channel : channel + series.channels]
                series.read(begin, part)
                channel += series.channels
            if not np.isfinite(block_SCIJ).all():
                self._refuse(begin, block_SCIJ)
            yield begin, block_SCIJ

    def state(self, index: int) -> NDArray[np.float32]:
        """One state, float32[C, I, J], of which nothing is kept; threads may read at once."""
        channels = sum(series.channels for series in self._series.values())
        state_CIJ = np.empty((channels, *self.grid.shape), dtype=np.float32)
        channel = 0
        for series in self._series.values():
            series.read_one(index, state_CIJ[channel : channel + series.channels])
            channel += series.channels
        return state_CIJ

    def refuse_to_refer(self) -> None:
        """Raise `DataError` unless states are in Zarr stores whose chunks hold whole fields of one time."""
        for series in self._series.values():
            series.refuse_to_refer()

    def stores(self) -> list[Path]:
        """Files that hold states."""
        return sorted({path for series in self._series.values() for path in series.paths})

    def _refuse(self, begin: int, block_SCIJ: NDArray[np.float32]) -> None:
        """Name the first value that is not finite."""
        row, channel = np.argwhere(~np.isfinite(block_SCIJ).all(axis=(2, 3)))[0]
        when = np.datetime64("1970-01-01") + np.timedelta64(
            round(float(self.time[begin + row]) * 1440), "m"
        )
        first = 0
        for series in self._series.values():
            if first <= channel < first + series.channels:
                path, name = series.origin(begin + int(row), int(channel) - first)
                values = block_SCIJ[row, first : first + series.channels]
                raise DataError(
                    f"{path}: {name} at {when} holds {_what(values)} that is not finite; mend the data (it "
                    "is not filled) or leave the variable or the period out"
                )
            first += series.channels

    def look_at(self, times: Ints) -> None:
        """Look for what is no data at these times alone: other states may be read in the same pieces."""
        for series in self._series.values():
            series.looked_at = times

    @property
    def units(self) -> dict[str, str | None]:
        """Units that variables are turned into."""
        return {name: series.unit for name, series in self._series.items()}

    def files_of(self, times: Sequence[int]) -> tuple[list[Path], dict[Path, Any]]:
        """Files that hold some of the states, and what they are known by, should they grow."""
        steps: dict[Path, dict[str, tuple[int, int]]] = {}
        for series in self._series.values():
            for path, name, first, last in series.steps_at(np.asarray(times, dtype=np.int64)):
                steps.setdefault(path, {})[name] = first, last
        by_path = {source.path: source.data for source in self._sources}
        told = {path: signature(path, by_path[path], used) for path, used in steps.items()}
        return [*steps], {path: one for path, one in told.items() if one is not None}

    def evidence(self) -> list[dict[str, Any]]:
        """What may be no-data values among the states that were read, for `series.refuse_no_data`."""
        return [one for series in self._series.values() for one in series.evidence()]

    def static(self) -> Floats:
        """Fields that do not change, [F, I, J]; what several files have has to be the same."""
        fields = [self._static_field(name) for name in self._config.static]
        return np.array(fields).reshape(-1, *self.grid.shape)

    def _static_field(self, name: str) -> Floats:
        known = STATIC_ALIASES.get(name, (name,))
        first: tuple[str, Floats] | None = None
        for source in self._sources:
            for variable in _static_variables(source.data, known):
                self._used.add((source.path, str(variable.name)))
                what = f"{source.path}: {variable.name}"
                field = self._checked_static(name, source, variable)
                if first is None:
                    first = what, field
                elif not np.allclose(
                    field, first[1], rtol=1e-3, atol=1e-3 * np.abs(first[1]).max()
                ):
                    raise DataError(f"{what} is not that of {first[0]}; keep one of them")
        if first is None:
            raise self._missing(name, known)
        return first[1]

    def _checked_static(self, name: str, source: Source, variable: xr.DataArray) -> Floats:
        unit, what = unit_of(variable), f"{source.path}: {variable.name}"
        if set(variable.dims) - {"time"} != {"latitude", "longitude"}:
            raise DataError(
                f"{what} has the axes {', '.join(map(str, variable.dims))}; expected latitude, longitude"
            )
        if "time" in variable.dims:
            first, last = (source.cut(variable).isel(time=at).values for at in (0, -1))
            if not np.array_equal(first, last, equal_nan=True):
                raise DataError(f"{what} changes in time; expected a static field")
            variable = variable.isel(time=0)
        raw = source.cut(variable).transpose("latitude", "longitude").values.astype(np.float64)
        raw = raw[source.rows_at][:, source.columns_at]
        if not np.isfinite(raw).all():
            raise DataError(
                f"{what} holds {_what(raw)} that is not finite; mend it or leave it out of the dataset's "
                "static fields"
            )
        screening = Screening.of(self._config.missing)
        screening.add(raw)
        for suspect in screening.suspects():
            raise DataError(f"{source.path}: {suspect.sentence(str(variable.name), 'missing')}")
        check_static(name, raw, unit, what)
        return converted(raw, unit, STATIC_SI.get(name), what)

    def count(self, account: Account, ranges: NDArray[np.int64]) -> None:
        """Count what was read; ``ranges`` are the times of the parts of the split."""
        files = {source.path for source in self._sources}
        account.keep("files", len(files))
        account.leave_out("files", "without a variable that is asked for", len(self._files - files))
        # Of one name in many files it counts whether any is used.
        there = {(s.path, str(name)) for s in self._sources for name in s.data.data_vars}
        used = {name for _, name in self._used}
        account.keep("variables", len(used))
        account.leave_out("variables", "not asked for", len({n for _, n in there} - used))
        same = {one for one in there - self._used if one[1] in used}
        account.leave_out("variables", "of a name that is asked for, with other axes", len(same))
        levels = {float(level) for source in self._sources for level in source.level_L}
        if len(self.grid.level):
            account.keep("levels", len(self.grid.level))
            account.leave_out("levels", "not asked for", len(levels) - len(self.grid.level))
        rows, columns = self.grid.shape
        account.keep("cells", rows * columns)
        source = self._sources[0]
        one_row = source.cells_cut == columns and goes_round(self.grid.longitude)
        several = f"in the last rows and columns, cut to multiples of {MULTIPLE}"
        cut = "in the last of an odd number of rows" if one_row else several
        account.leave_out("cells", cut, source.cells_cut)
        every = source.data.sizes["latitude"] * source.data.sizes["longitude"]
        outside = every - rows * columns - source.cells_cut
        account.leave_out("cells", "outside of the area", outside)
        kept = int((ranges[:, 1] - ranges[:, 0]).sum())
        account.keep("states", kept)
        account.leave_out("states", "in the gaps of the split", len(self) - kept)
        between = f"at times between those every {self._config.hours} h"
        account.leave_out("states", between, self._times - len(self))
        account.leave_out("states", "at times of other years", self._other_years)


def _relevant(
    files: Sequence[tuple[Path, xr.Dataset]], config: WeatherConfig
) -> list[tuple[Path, xr.Dataset]]:
    """Files that hold something that is asked for; all of them if none does."""
    known = [_known(name) for name in (*config.surface, *config.air)]
    known += [STATIC_ALIASES.get(name, (name,)) for name in config.static]
    found = [(path, data) for path, data in files if any(_named(data, names) for names in known)]
    found = found or list(files)
    if not any("time" in data.variables for _, data in found):
        raise DataError(
            f"{found[0][0].parent}: no file has an axis of time; add the states to the static fields"
        )
    return found


def _known(name: str) -> tuple[str, ...]:
    """Names of a variable in files, the usual ones first."""
    return ALIASES.get(short_name(name), (name,))


def _named(data: xr.Dataset, known: Sequence[str]) -> list[xr.DataArray]:
    return [data[name] for name in known if name in data.data_vars]


def _static_variables(data: xr.Dataset, known: Sequence[str]) -> list[xr.DataArray]:
    """Variables under one of the names without levels."""
    found = _named(data, known)
    alone = data.variables.get("level")
    at_level = alone is not None and alone.ndim == 0
    # With a level of its own, geopotential is that of the air.
    is_air = [v.name in ALIASES["z"] and (at_level or "level" in v.dims) for v in found]
    return [v for v, air in zip(found, is_air, strict=True) if not air]


def _within(hours: Floats, years: tuple[int, int], path: Path) -> Floats:
    """Times, in hours since 1970, from the first to the last of the years."""
    edges = np.array([f"{years[0]:04}-01-01", f"{years[1] + 1:04}-01-01"], dtype="datetime64[h]")
    begin, end = edges.astype(np.int64)
    inside = hours[(hours >= begin) & (hours < end)]
    if not len(inside):
        has = [np.datetime64(int(hour), "h") for hour in hours[[0, -1]]]
        raise DataError(
            f"{path}: no times in weather.years {years[0]} to {years[1]}; it has {has[0]} to {has[1]}"
        )
    return inside


def _every(hours: Floats, step: int, path: Path) -> NDArray[np.int64]:
    """Indices of the times that are ``step`` hours apart, from the first on."""
    if len(hours) < 2:
        raise DataError(f"{path}: expected at least two times")
    wanted = np.arange(hours[0], hours[-1] + 1e-6, step)
    kept = np.searchsorted(hours, wanted - 1e-6)
    wrong = np.flatnonzero(np.abs(hours[np.minimum(kept, len(hours) - 1)] - wanted) > 1e-3)
    if len(wrong):
        when = np.datetime64("1970-01-01") + np.timedelta64(round(wanted[wrong[0]] * 60), "m")
        raise DataError(
            f"{path}: the time {when} is missing in steps of {step} h; add it, or set weather.hours to the "
            "step of the data"
        )
    return kept


def _what(values: NDArray) -> str:
    bad = values[~np.isfinite(values)]
    return f"{len(bad)} value{'s' if len(bad) > 1 else ''} ({bad.flat[0]})"
