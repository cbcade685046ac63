"""One variable of weather in all files that hold it, read part by part and looked at for what is no data.

Shape suffixes: T times, S times read at once, P parts of files, L levels, I latitudes, J longitudes.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from millrace.data.units import common, converted
from millrace.data.validity import Screening
from millrace.errors import DataError
from millrace.systems.settings import MissingConfig
from millrace.systems.weather.source import (
    SINGLE,
    TIME_NAMES,
    Floats,
    Index,
    Ints,
    Source,
    index_of,
    is_store,
    listed_levels,
)
from millrace.systems.weather.units import SI, check_units, short_name

_PART_BYTES = 4 << 20
"""What is read of a variable at once, at least."""


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


class Series:
    """One variable in all files that hold it, in the unit of the samples."""

    def __init__(
        self,
        name: str,
        holders: Sequence[tuple[Source, xr.DataArray]],
        level_L: Floats | None,
        shape: tuple[int, int],
        missing: MissingConfig | None,
    ) -> None:
        self._name, self._level_L = name, level_L
        read = [self._asked(source) for source, _ in holders]
        self._holders = [
            (source, _cut(source, variable, at))
            for (source, variable), at in zip(holders, read, strict=True)
        ]
        self._levels_read = [one.level_L[at] for (one, _), at in zip(holders, read, strict=True)]
        self.unit = SI.get(short_name(name)) or common(unit_of(v) for _, v in self._holders)
        """Of the states."""
        self._shape, self._missing = shape, missing
        self.looked_at: Index = slice(None)
        """Times whose values are looked at for what is no data."""
        for source, variable in self._holders:
            # Units are checked before anything is read.
            converted(np.zeros(1), unit_of(variable), self.unit, f"{source.path}: {variable.name}")
        self._at_LT: list[tuple[Ints, Ints]] = []
        self._parts: list[_Part] = []
        self._kept: dict[int, NDArray] = {}
        self._checked: set[int] = set()
        self._seen_parts: set[int] = set()
        # By level and unit: what is far from all others in one may be among them in another.
        self._screened: dict[tuple[int, str | None], tuple[Screening, list[_Piece]]] = {}

    def _asked(self, source: Source) -> Ints:
        """Levels of a file that are asked for; all if none is."""
        if self._level_L is None:
            return np.arange(len(source.level_L))
        asked = np.isclose(source.level_L[:, None], self._level_L).any(axis=1)
        return np.flatnonzero(asked if asked.any() else ~asked)

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

        They are whole chunks, or, of chunks that are too long, such that all parts lie in one of them. Only
        chunks between the first and the last step that is used are among them.
        """
        self._most_bytes = most * self.bytes_per_state
        first_of = [len(self._parts)]
        for holder, (_, variable) in enumerate(self._holders):
            steps = variable.sizes.get("time", 1)
            used = np.concatenate([step_T[of_T == holder] for of_T, step_T in self._at_LT])
            chunk = min(_steps_per_chunk(variable), steps)
            wanted = max(1, _PART_BYTES // _bytes_per_step(variable) // chunk) * chunk
            span = wanted if wanted <= most else max(chunk, most // chunk * chunk)
            length = -(-span // -(-span // most))
            begin, end = (int(used.min()), int(used.max()) + 1) if len(used) else (0, 0)
            for start in range(begin // chunk * chunk, end, span):
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

    @property
    def steps_per_chunk(self) -> int:
        """Steps that are stored together, the most of all files."""
        return max(_steps_per_chunk(variable) for _, variable in self._holders)

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
                        values_SIJ, unit_of(variable), self.unit, what
                    )
        self._kept = {part: v for part, v in self._kept.items() if self._last_P[part] >= end}

    def read_one(self, index: int, out_LIJ: NDArray[np.float32]) -> None:
        """Read the fields of one time, of which nothing is kept: threads may do so at once."""
        raw: dict[int, NDArray] = {}
        for at, (holder_T, step_T) in enumerate(self._at_LT):
            holder, step = int(holder_T[index]), int(step_T[index])
            if holder not in raw:
                raw[holder] = self._read(_Part(holder, step, step + 1))[0]
            source, variable = self._holders[holder]
            values_IJ, what = raw[holder][self._row(holder, at)], f"{source.path}: {variable.name}"
            with np.errstate(over="ignore"):
                out_LIJ[at] = converted(values_IJ, unit_of(variable), self.unit, what)

    def refuse_to_refer(self) -> None:
        """Raise `DataError` unless each chunk holds whole fields of one time, in a Zarr store."""
        for source, variable in self._holders:
            if not is_store(source.path):
                raise DataError(
                    f"{source.path}: no Zarr store, so that its states cannot be read one by one as "
                    "`store: reference` does; take `store: copy`"
                )
            sizes, chunks = source.data[variable.name].sizes, _chunks(variable)
            whole = all(chunks.get(a, 0) >= sizes[a] for a in ("latitude", "longitude"))
            if chunks.get("time", 1) != 1 or not whole:
                found = " x ".join(f"{chunks.get(str(a), '?')} {a}" for a in variable.dims)
                raise DataError(
                    f"{source.path}: {variable.name} has chunks of {found}, of "
                    f"{sizes['latitude']} x {sizes['longitude']} cells; `store: reference` needs whole "
                    "fields of one time: take `store: copy`, or write the store again with such chunks"
                )

    def steps_at(self, times: Ints) -> list[tuple[Path, str, int, int]]:
        """Files that hold some times: path, name of the variable there, its first and last step of them."""
        found = []
        for number, (source, variable) in enumerate(self._holders):
            used = [step_T[times][of_T[times] == number] for of_T, step_T in self._at_LT]
            steps = np.concatenate(used)
            if len(steps):
                found.append((source.path, str(variable.name), int(steps.min()), int(steps.max())))
        return found

    @property
    def paths(self) -> list[Path]:
        """Files that hold the variable."""
        return [source.path for source, _ in self._holders]

    def _values(self, number: int) -> NDArray:
        """Values of a part as they stand in the file, [T, L, I, J]."""
        values = self._kept.pop(number, None)
        if values is None:
            values = self._read(self._parts[number])
            if number not in self._seen_parts:
                self._look_at(self._parts[number], values)
                self._seen_parts.add(number)
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
        unit = unit_of(variable)
        self._screen(part.holder, part.first, raw_TLIJ, unit)
        if part.holder not in self._checked and np.isfinite(raw_TLIJ[0]).all():
            what = f"{source.path}: {variable.name}"
            check_units(self._name, raw_TLIJ[0], unit, self._levels_read[part.holder], what)
            self._checked.add(part.holder)

    def _screen(self, holder: int, first: int, raw_TLIJ: NDArray, unit: str | None) -> None:
        """Look for no-data values among the steps and levels of a part that are used."""
        for at, (holder_T, step_T) in enumerate(self._at_LT):
            step_S = step_T[self.looked_at][holder_T[self.looked_at] == holder]
            step_S = step_S[(step_S >= first) & (step_S < first + len(raw_TLIJ))]
            values = raw_TLIJ[:, self._row(holder, at)]
            if not len(step_S):
                continue
            if len(step_S) < len(values):
                values = values[step_S - first]
            new: tuple[Screening, list[_Piece]] = (Screening.of(self._missing), [])
            screening, pieces = self._screened.setdefault((at, unit), new)
            screening.add(values)
            pieces.append(_Piece(holder, step_S))

    def evidence(self) -> list[dict[str, Any]]:
        """What may be no-data values among all that was read, for `refuse_no_data`."""
        return [
            {
                "of": [self._name, at, unit],
                "seen": screening.to_json(partial(self._place, pieces)),
            }
            for (at, unit), (screening, pieces) in self._screened.items()
        ]

    def _place(self, pieces: Sequence[_Piece], number: int, index: int) -> tuple[str, str, str]:
        """File, variable, and time and cell in words."""
        piece = pieces[number]
        source, variable = self._holders[piece.holder]
        step, row, column = np.unravel_index(index, (len(piece.step_S), *self._shape))
        when = np.datetime64(int(source.second_T[piece.step_S[step]]), "s").astype("datetime64[m]")
        at = (
            f" at {when}, latitude {source.latitude[row]:g}, longitude {source.longitude[column]:g}"
        )
        return str(source.path), str(variable.name), at

    def _row(self, holder: int, at: int) -> int:
        """Where a level is in what is read of a file."""
        if self._level_L is None:
            return 0
        return int(np.argmin(np.abs(self._levels_read[holder] - self._level_L[at])))


def refuse_no_data(
    evidence: Iterable[Iterable[Mapping[str, Any]]], missing: MissingConfig | None
) -> None:
    """Raise `DataError` for a no-data value in what `Series.evidence` says of all ranges of times."""
    merged: dict[tuple[Any, ...], tuple[Screening, list[Any]]] = {}
    for one in itertools.chain.from_iterable(evidence):
        new: tuple[Screening, list[Any]] = (Screening.of(missing), [])
        screening, places = merged.setdefault(tuple(one["of"]), new)
        screening.add_seen(one["seen"], places)
    for screening, places in merged.values():
        for suspect in screening.suspects():
            path, name, at = places[suspect.piece]
            raise DataError(f"{path}: {suspect.sentence(name, 'missing', at)}")


def _cut(source: Source, variable: xr.DataArray, levels: Ints) -> xr.DataArray:
    """The part of a variable that is read, lazily."""
    variable = source.cut(variable)
    return variable.isel(level=index_of(levels)) if "level" in variable.dims else variable


def _bytes_per_step(variable: xr.DataArray) -> int:
    return max(1, variable.nbytes // max(1, variable.sizes.get("time", 1)))


def _steps_per_chunk(variable: xr.DataArray) -> int:
    """Steps of a file that are stored, and perhaps packed, together."""
    chunks = variable.encoding.get("preferred_chunks") or {}
    return max(1, int(next((chunks[name] for name in TIME_NAMES if name in chunks), 1)))


def _chunks(variable: xr.DataArray) -> dict[str, int]:
    """Sizes of the pieces in which a variable is stored, by axis; empty if they are not known."""
    stored = variable.encoding.get("preferred_chunks") or {}
    # Under the names of the file; axes of one entry are dropped.
    sizes = [int(size) for name, size in stored.items() if name not in SINGLE]
    fits = len(sizes) == variable.ndim
    return dict(zip(map(str, variable.dims), sizes, strict=True)) if fits else {}


def unit_of(variable: xr.DataArray) -> str | None:
    """What a file says of the unit; None if nothing."""
    return str(variable.attrs.get("units", "")).strip() or None
