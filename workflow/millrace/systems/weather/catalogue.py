"""Which file holds which variable at which time and level: states are put together by label.

Files may be divided by time, variable and level in any way, and have their axes in any order.

Shape suffixes: T times, C channels, F static fields, L levels, I latitudes, J longitudes.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from millrace.data.account import Account
from millrace.data.units import common, converted
from millrace.data.validity import Screening
from millrace.errors import DataError
from millrace.systems.weather.settings import WeatherConfig, WeatherExtraction
from millrace.systems.weather.source import (
    TIME_NAMES,
    Floats,
    Ints,
    Source,
    index_of,
    listed_levels,
    locate,
    same_cells,
)
from millrace.systems.weather.units import (
    ALIASES,
    SI,
    STATIC_ALIASES,
    STATIC_SI,
    check_static,
    check_units,
    short_name,
)

_PART_BYTES, _ALL_BYTES = 4 << 20, 1 << 30
"""What is read of a variable at once, at least, and of all of them at most."""
_BLOCK_BYTES = 8 << 20
"""States that are handed on at once."""


@dataclass(frozen=True)
class Grid:
    """Axes of the states."""

    level: Floats
    """hPa, ascending."""
    latitude: Floats
    """Degrees, descending."""
    longitude: Floats
    """Degrees from 0 on, ascending."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.latitude), len(self.longitude)


def grid_of(files: Sequence[tuple[Path, xr.Dataset]], config: WeatherConfig) -> Grid:
    """Axes of the states by those of the files, whose variables need not be there yet."""
    sources = [locate(path, data) for path, data in _relevant(files, config)]
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
        self.missing = config.missing
        """What a number that looks like a no-data value means."""
        found = _relevant(files, config)
        self._files = {path for path, _ in files}
        sources = [locate(path, data) for path, data in found]
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
            self._series[name] = _Series(self, name, level if is_air else None)
        self._locate_times()
        per_state = sum(series.bytes_per_state for series in self._series.values())
        for series in self._series.values():
            series.divide(max(1, _ALL_BYTES // max(1, per_state)))

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
        return DataError(f"{one}: no variable {known[0]!r} (for {name}); it has {', '.join(names)}")

    def _locate_times(self) -> None:
        seconds = [
            self._sources[s].second_T for holders in self._holders.values() for s, _ in holders
        ]
        hours = np.unique(np.concatenate(seconds)) / 3600.0
        kept = _every(hours, self._config.hours, self._source)
        self.time: Floats = hours[kept] / 24.0
        self._times = len(hours)
        for series in self._series.values():
            series.locate_times(np.round(hours[kept] * 3600.0).astype(np.int64))

    def __len__(self) -> int:
        return len(self.time)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """States in the order of time, some at once: index of the first one, and float32[S, C, I, J].

        The array is used again for the next ones. Raises `DataError` if a value is not finite.
        """
        channels = len(self._config.surface) + len(self._config.air) * len(self.grid.level)
        state = 4 * channels * self.grid.shape[0] * self.grid.shape[1]
        rows = min(len(self), max(1, _BLOCK_BYTES // state))
        every_SCIJ = np.empty((rows, channels, *self.grid.shape), dtype=np.float32)
        for begin in range(0, len(self), rows):
            block_SCIJ = every_SCIJ[: len(self) - begin]
            channel = 0
            for series in self._series.values():
                part = block_SCIJ[:, channel : channel + series.channels]
                series.read(begin, part)
                channel += series.channels
            if not np.isfinite(block_SCIJ).all():
                self._refuse(begin, block_SCIJ)
            yield begin, block_SCIJ

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

    def check_no_data(self) -> None:
        """Refuse no-data values among the states, which have all been read before."""
        for series in self._series.values():
            series.check_no_data()

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
        unit, what = _unit(variable), f"{source.path}: {variable.name}"
        if set(variable.dims) - {"time"} != {"latitude", "longitude"}:
            raise DataError(
                f"{what} has the axes {', '.join(map(str, variable.dims))}; expected latitude, longitude"
            )
        if "time" in variable.dims:
            first, last = (variable.isel(time=at).values for at in (0, -1))
            if not np.array_equal(first, last, equal_nan=True):
                raise DataError(f"{what} changes in time; expected a static field")
            variable = variable.isel(time=0)
        raw = variable.transpose("latitude", "longitude").values.astype(np.float64)
        raw = raw[source.rows_at][:, source.columns_at]
        if not np.isfinite(raw).all():
            raise DataError(
                f"{what} holds {_what(raw)} that is not finite; mend it or leave it out of the dataset's "
                "static fields"
            )
        screening = Screening.of(self.missing)
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
        last = self._sources[0].data.sizes["latitude"] - rows
        account.leave_out("cells", "in the last of an odd number of rows", last * columns)
        kept = int((ranges[:, 1] - ranges[:, 0]).sum())
        account.keep("states", kept)
        account.leave_out("states", "in the gaps of the split", len(self) - kept)
        between = f"at times between those every {self._config.hours} h"
        account.leave_out("states", between, self._times - len(self))

    def holders(self, name: str) -> list[tuple[Source, xr.DataArray]]:
        """Files that hold a variable, and the variable in them."""
        return [(self._sources[s], variable) for s, variable in self._holders[name]]


@dataclass(frozen=True, eq=False)
class _Piece:
    """Steps of a file that were looked at together."""

    holder: int
    step_S: Ints


@dataclass(frozen=True)
class _Part:
    """Steps of a file that are read at once."""

    holder: int
    first: int
    stop: int


class _Series:
    """One variable in all files that hold it, in the unit of the samples."""

    def __init__(self, catalogue: Catalogue, name: str, level_L: Floats | None) -> None:
        self._name, self._level_L = name, level_L
        self._holders = catalogue.holders(name)
        self._unit = SI.get(short_name(name)) or common(_unit(v) for _, v in self._holders)
        self._shape = catalogue.grid.shape
        for source, variable in self._holders:
            # Units are checked before anything is read.
            converted(np.zeros(1), _unit(variable), self._unit, f"{source.path}: {variable.name}")
        self._at_LT: list[tuple[Ints, Ints]] = []
        self._parts: list[_Part] = []
        self._kept: dict[int, NDArray] = {}
        self._checked: set[int] = set()
        self._looked_at: set[int] = set()
        self._missing = catalogue.missing
        # By level and unit: what is far from all others in one may be among them in another.
        self._screened: dict[tuple[int, str | None], tuple[Screening, list[_Piece]]] = {}

    def locate_times(self, second_T: Ints) -> None:
        """Find the file and the step of each level and time."""
        if self._level_L is None:
            self._at_LT = [self._locate(range(len(self._holders)), second_T, "")]
            return
        for level in self._level_L:
            having = [
                h
                for h, (one, _) in enumerate(self._holders)
                if np.isclose(one.level_L, level).any()
            ]
            if not having:
                all_levels = np.unique(np.concatenate([one.level_L for one, _ in self._holders]))
                raise DataError(
                    f"{self._holders[0][0].path}: no level of {level:g} hPa; it has "
                    f"{listed_levels(all_levels)}"
                )
            self._at_LT.append(self._locate(having, second_T, f" at {level:g} hPa"))

    def _locate(self, holders: Sequence[int], second_T: Ints, at: str) -> tuple[Ints, Ints]:
        """Number of the holder and step in it of each time."""
        seconds = [self._holders[h][0].second_T for h in holders]
        holder = np.repeat(np.asarray(holders), [len(one) for one in seconds])
        step = np.concatenate([np.arange(len(one)) for one in seconds])
        every = np.concatenate(seconds)
        order = np.argsort(every, kind="stable")
        every, holder, step = every[order], holder[order], step[order]
        first = np.searchsorted(every, second_T)
        count = np.searchsorted(every, second_T, side="right") - first
        wrong = np.flatnonzero(count != 1)
        if len(wrong):
            when = np.datetime64(int(second_T[wrong[0]]), "s").astype("datetime64[m]")
            name, begin = self._holders[0][1].name, int(first[wrong[0]])
            if count[wrong[0]]:
                paths = [self._holders[h][0].path for h in holder[begin : begin + 2]]
                raise DataError(
                    f"{paths[1]}: {name}{at} at {when} is there twice, also in {paths[0].name}; remove one"
                )
            paths = list(dict.fromkeys(str(one.path) for one, _ in self._holders))
            raise DataError(
                f"{paths[0]}: no {name}{at} at {when}, where there are other variables; add it, or leave "
                "out what has other times"
            )
        return holder[first], step[first]

    @property
    def channels(self) -> int:
        """Fields of a state."""
        return len(self._at_LT)

    @property
    def bytes_per_state(self) -> int:
        """What is read of all files for one state, as a rule."""
        at_once = {int(holder_T[0]) for holder_T, _ in self._at_LT}
        return sum(_bytes_per_step(self._holders[holder][1]) for holder in at_once)

    def divide(self, most: int) -> None:
        """Divide the files into parts of at most ``most`` steps that are read at once.

        They are whole chunks, or, of chunks that are too long, such that all parts lie in one of them.
        """
        self._most_bytes = most * self.bytes_per_state
        first_of = [len(self._parts)]
        for holder, (_, variable) in enumerate(self._holders):
            steps = variable.sizes.get("time", 1)
            chunk = min(_steps_per_chunk(variable), steps)
            wanted = max(1, _PART_BYTES // _bytes_per_step(variable) // chunk) * chunk
            span = wanted if wanted <= most else max(chunk, most // chunk * chunk)
            length = -(-span // -(-span // most))
            for start in range(0, steps, span):
                stop = min(start + span, steps)
                for first in range(start, stop, length):
                    self._parts.append(_Part(holder, first, min(first + length, stop)))
            first_of.append(len(self._parts))
        begin_P = np.array([part.first for part in self._parts])
        part_LT = np.empty((self.channels, len(self._at_LT[0][0])), dtype=np.int64)
        for part_T, (holder_T, step_T) in zip(part_LT, self._at_LT, strict=True):
            for holder in np.unique(holder_T):
                of_holder = slice(first_of[holder], first_of[holder + 1])
                at = np.searchsorted(begin_P[of_holder], step_T[holder_T == holder], side="right")
                part_T[holder_T == holder] = of_holder.start + at - 1
        self._part_LT = part_LT
        self._last_P = np.full(len(self._parts), -1)
        for part_T in part_LT:
            np.maximum.at(self._last_P, part_T, np.arange(part_LT.shape[1]))

    def origin(self, index: int, level: int) -> tuple[Path, str]:
        """File and name of the variable at a time and level."""
        source, variable = self._holders[int(self._at_LT[level][0][index])]
        return source.path, str(variable.name)

    def read(self, begin: int, out_SLIJ: NDArray[np.float32]) -> None:
        """Read fields of the times from ``begin`` on, as many as there are in ``out_SLIJ``."""
        end = begin + len(out_SLIJ)
        changes = np.any(np.diff(self._part_LT[:, begin:end]) != 0, axis=0)
        bounds = [begin, *(begin + 1 + np.flatnonzero(changes)), end]
        for start, stop in itertools.pairwise(bounds):
            for at, (holder_T, step_T) in enumerate(self._at_LT):
                part, holder = int(self._part_LT[at, start]), int(holder_T[start])
                source, variable = self._holders[holder]
                steps = index_of(step_T[start:stop] - self._parts[part].first)
                values_SIJ = self._values(part)[steps, self._row(holder, at)]
                what = f"{source.path}: {variable.name}"
                with np.errstate(over="ignore"):  # said by the check of finite values
                    out_SLIJ[start - begin : stop - begin, at] = converted(
                        values_SIJ, _unit(variable), self._unit, what
                    )
        self._kept = {part: v for part, v in self._kept.items() if self._last_P[part] >= end}

    def _values(self, number: int) -> NDArray:
        """Values of a part as they stand in the file, [T, L, I, J]."""
        values = self._kept.pop(number, None)
        if values is None:
            values = self._read(self._parts[number])
            if number not in self._looked_at:
                self._look_at(self._parts[number], values)
                self._looked_at.add(number)
        # Where times of a file are in no order, what was not used for longest is read again.
        while self._kept and sum(v.nbytes for v in self._kept.values()) + values.nbytes > max(
            self._most_bytes, values.nbytes
        ):
            del self._kept[next(iter(self._kept))]
        self._kept[number] = values
        return values

    def _read(self, part: _Part) -> NDArray:
        source, variable = self._holders[part.holder]
        if "time" in variable.dims:
            variable = variable.isel(time=slice(part.first, part.stop))
        axes = [
            axis for axis in ("time", "level", "latitude", "longitude") if axis in variable.dims
        ]
        # Read first: transposed lazily, a store would be read cell by cell.
        raw = variable.values.transpose([variable.dims.index(axis) for axis in axes])
        raw = raw[..., source.rows_at, :][..., source.columns_at]
        return raw[
            (slice(None) if "time" in axes else None, slice(None) if "level" in axes else None)
        ]

    def _look_at(self, part: _Part, raw_TLIJ: NDArray) -> None:
        source, variable = self._holders[part.holder]
        unit = _unit(variable)
        self._screen(part.holder, part.first, raw_TLIJ, unit)
        if part.holder not in self._checked and np.isfinite(raw_TLIJ[0]).all():
            what = f"{source.path}: {variable.name}"
            check_units(self._name, raw_TLIJ[0], unit, source.level_L, what)
            self._checked.add(part.holder)

    def _screen(self, holder: int, first: int, raw_TLIJ: NDArray, unit: str | None) -> None:
        """Look for no-data values among the steps and levels of a part that are used."""
        for at, (holder_T, step_T) in enumerate(self._at_LT):
            step_S = step_T[holder_T == holder]
            step_S = step_S[(step_S >= first) & (step_S < first + len(raw_TLIJ))]
            values = raw_TLIJ[:, self._row(holder, at)]
            if len(step_S) < len(values):
                values = values[step_S - first]
            new: tuple[Screening, list[_Piece]] = (Screening.of(self._missing), [])
            screening, pieces = self._screened.setdefault((at, unit), new)
            screening.add(values)
            pieces.append(_Piece(holder, step_S))

    def check_no_data(self) -> None:
        """Refuse no-data values that were read, with file, time and place."""
        for screening, pieces in self._screened.values():
            for suspect in screening.suspects():
                piece = pieces[suspect.piece]
                source, variable = self._holders[piece.holder]
                step, row, column = np.unravel_index(
                    suspect.index, (len(piece.step_S), *self._shape)
                )
                second = int(source.second_T[piece.step_S[step]])
                when = np.datetime64(second, "s").astype("datetime64[m]")
                at = (
                    f" at {when}, latitude {source.latitude[row]:g}, longitude "
                    f"{source.longitude[column]:g}"
                )
                raise DataError(
                    f"{source.path}: {suspect.sentence(str(variable.name), 'missing', at)}"
                )

    def _row(self, holder: int, at: int) -> int:
        """Where a file has a level."""
        if self._level_L is None:
            return 0
        return int(np.argmin(np.abs(self._holders[holder][0].level_L - self._level_L[at])))


def _bytes_per_step(variable: xr.DataArray) -> int:
    return max(1, variable.nbytes // max(1, variable.sizes.get("time", 1)))


def _steps_per_chunk(variable: xr.DataArray) -> int:
    """Steps of a file that are stored, and perhaps packed, together."""
    chunks = variable.encoding.get("preferred_chunks") or {}
    return max(1, int(next((chunks[name] for name in TIME_NAMES if name in chunks), 1)))


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


def _unit(variable: xr.DataArray) -> str | None:
    """What a file says of the unit; None if nothing."""
    return str(variable.attrs.get("units", "")).strip() or None


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
