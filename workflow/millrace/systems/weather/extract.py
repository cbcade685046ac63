"""Weather in NetCDF, Zarr or CSV -> ``weather.h5``: states on one grid, in SI units, checked.

Names are found in the table `millrace.systems.weather.units.ALIASES`; values are taken by their
coordinates, from whatever file has them and in whatever order of its axes. Latitudes are turned to descend,
longitudes to begin at 0, units to SI. A value that is not finite is an error that names variable and time:
who made the data may fill gaps, this does not.

File (schema ``millrace.weather/1``): ``state`` float32[T, C, I, J], surface variables first, then each
variable of the air level by level; ``static`` float32[F, I, J]; ``time`` (days since 1970), ``latitude``,
``longitude``, ``level`` (hPa); ``split``; of the training period ``climatology``, the mean state [C, I, J],
and ``stats`` of each channel.

Where states stay in the source there is no ``state``, but ``check``, a checksum of each, uint32[T], and the
attribute ``reference``: the source and a hash of its metadata, see `millrace.systems.weather.in_place`. All
else is the same, also the digest. States that are rounded have the attribute ``compression``: how, and the
largest errors. Statistics and digest are those of the states as they are written.

States can be extracted in parts, each in a file of its own (`extract_part`); `gather` makes a file whose
``state`` is read through to theirs. Parts know neither the split nor each other: they hold sums and digests
of single states, and sums of blocks of `BLOCK` states, of which gathering takes those of the training
period, in the order of time. Where a block or a change of a step lies in two parts it reads their states.
Everything in the file is the same, bit by bit, whatever the parts.

Shape suffixes: T times, S times at once, C channels, F static fields, L levels, I latitudes, J longitudes,
N blocks.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data import hdf5
from millrace.data.account import Account
from millrace.data.parts import Parts, Record, digest_of, read_json, write_json
from millrace.data.shares import Share, runs
from millrace.data.split import Moments, SplitConfig, time_split
from millrace.errors import DataError
from millrace.input_files import Address, resolve_address
from millrace.systems.base import Progress
from millrace.systems.weather.catalogue import Catalogue
from millrace.systems.weather.in_place import checksum, reference_to
from millrace.systems.weather.rounding import Rounding
from millrace.systems.weather.series import refuse_no_data
from millrace.systems.weather.settings import WeatherConfig, WeatherExtraction
from millrace.systems.weather.source import AXES, Floats, open_sources
from millrace.systems.weather.units import SCHEMA

BLOCK = 16
"""States whose sum is kept, for the mean state."""
PART_SCHEMA = "millrace.weather_part/3"


def extract_weather(
    source: Path,
    output: Path,
    config: WeatherConfig | WeatherExtraction,
    split: SplitConfig,
    progress: Progress | None = None,
) -> None:
    """Read raw weather and write ``weather.h5``, with statistics of the training period.

    The source is a file of NetCDF, GRIB or CSV, a Zarr store or its `Address`, or a directory of them.
    ``progress`` is called with (times written, all). `samples.json` beside ``output`` says what was read,
    kept, and left out for which reason. Raises `DataError` if the files are not readable, do not fit each
    other, lack something, or hold what is not finite.
    """
    raw = _Raw.open(source, config)
    ranges, account = raw.divided(split)
    trained = int(ranges[0, 1])
    total = _Total(raw.shape[1:])
    with hdf5.create(output) as file:
        state = raw.create_states(file, raw.shape)
        sums = raw.copy(range(raw.shape[0]), state, trained, total.add, progress)
        raw.write_axes(file, ranges)
        raw.finish(file, trained, sums, total.sum_CIJ, [raw.reader.evidence()])
        _name_error(file, raw.rounding, account)
    account.write(output.with_name("samples.json"))


def extract_part(
    source: Path,
    output: Path,
    config: WeatherConfig | WeatherExtraction,
    share: Share,
    progress: Progress | None = None,
) -> None:
    """Write a share of the states, for `gather`.

    It is whole blocks of `BLOCK` states and, if it is long enough, whole chunks of the source. Raises
    errors like `extract_weather`.
    """
    raw = _Raw.open(source, config)
    unit, n_times = math.lcm(BLOCK, raw.reader.steps_per_chunk), raw.shape[0]
    cuts = range(0, n_times, unit if unit * share.of <= n_times else BLOCK)
    numbers = share.taken(raw.units, cuts)
    own = {*numbers}
    firsts = [n for n in numbers if n % BLOCK == 0 and own.issuperset(range(n, n + BLOCK))]
    with hdf5.create(output) as file:
        state = raw.create_states(file, (len(numbers), *raw.shape[1:]))
        shape = (len(firsts), *raw.shape[1:])
        sum_NCIJ = hdf5.create_dataset(
            file, "block_sum", shape=shape, dtype=np.float64, chunks=(1, 1, *shape[2:])
        )
        number = iter(range(len(firsts)))

        def keep(block_CIJ: Floats) -> None:
            sum_NCIJ[next(number)] = block_CIJ

        sums = raw.copy(numbers, state, n_times, keep, progress)
        for name in _SUMS:
            hdf5.create_dataset(file, f"sums/{name}", getattr(sums, name))
        hdf5.create_dataset(file, "block_second", np.array(raw.units, dtype=np.int64)[firsts])
        # What is at an address is not looked at when the workflow is planned.
        away = isinstance(raw.source, Address)
        read = ([], {}) if away else raw.reader.files_of(numbers)
        record = Record.of(raw.source, [raw.units[n] for n in numbers], *read)
        record.write(file, PART_SCHEMA, raw.facts())
        write_json(file, "evidence", raw.reader.evidence())
        if raw.rounding is not None:
            file.attrs["rounding"] = raw.rounding.to_json()


def gather(
    parts: Sequence[Path],
    source: Path,
    output: Path,
    config: WeatherConfig | WeatherExtraction,
    split: SplitConfig,
    progress: Progress | None = None,
) -> None:
    """Write ``weather.h5`` of the files of all parts, in which its states stay.

    Of the raw files the axes and static fields are read. ``progress`` is called with (parts done, all).
    Raises `DataError` if a part is missing, damaged, or not of the same raw files and settings.
    """
    raw = _Raw.open(source, config)
    ranges, account = raw.divided(split)
    trained = int(ranges[0, 1])
    every = Parts(parts, PART_SCHEMA, output, raw.facts(), raw.units, progress)
    with hdf5.create(output) as file, every:
        raw.write_axes(file, ranges)
        states = _StatesOfParts(raw, every)
        if raw.reference is None:
            hdf5.create_virtual(file, "state", every.virtual("state"), np.float32, output.parent)
        evidence = [read_json(part, "evidence") for part in every.in_order()]
        for part in every.files:
            if raw.rounding is not None:
                raw.rounding.add(part.attrs["rounding"])
        raw.finish(file, trained, states.sums(trained), states.total(trained), evidence)
        _name_error(file, raw.rounding, account)
    account.write(output.with_name("samples.json"))
    every.remove_others()


@dataclass(frozen=True, eq=False)
class _Sums:
    """What the digest and the statistics are made of, state by state."""

    digest: NDArray[np.uint8]
    """SHA-256 of each state, [T, 32]."""
    term: Floats
    """Sums of values and their squares, and of changes, less ``shift``: [T, 4, C]; the latter are NaN where
    the state before was not known."""
    shift: Floats
    """Means of the first state and of the first change, [2, C]."""
    check: NDArray[np.uint32]
    """Checksum of each state, [T], of those that stay where they are; else empty."""


_SUMS = tuple(field.name for field in fields(_Sums))


class _Total:
    """Sum of blocks in their order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.sum_CIJ = np.zeros(shape)

    def add(self, block_CIJ: Floats) -> None:
        self.sum_CIJ += block_CIJ


class _StatesOfParts:
    """Sums of all parts, completed where a part could not know what they are made of."""

    def __init__(self, raw: "_Raw", parts: Parts) -> None:
        self._raw, self._parts = raw, parts

    def _state(self, number: int) -> Floats:
        if self._raw.reference is None:
            return self._parts.row("state", number).astype(np.float64)
        [state] = self._raw.states(range(number, number + 1))
        return state

    def sums(self, trained: int) -> _Sums:
        """Sums state by state, those of the training period complete."""
        digest, term = (self._parts.rows(f"sums/{name}") for name in ("digest", "term"))
        stays = self._raw.reference is not None
        check = self._parts.rows("sums/check") if stays else np.zeros(0, dtype=np.uint32)
        shifts = [file["sums/shift"][()] for file in self._parts.files]
        shift_2C = self._shift(min(2, trained))
        previous_CIJ, last = None, -1
        for n in range(trained):
            mine_2C = shifts[self._parts.places[n][0]]
            fits = [np.array_equal(mine_2C[k], shift_2C[k]) for k in range(2)]
            fits[1] = n == 0 or (fits[1] and not np.isnan(term[n, 2:]).any())
            if all(fits):
                continue
            if n and not fits[1] and last != n - 1:
                previous_CIJ = self._state(n - 1)
            values_CIJ = self._state(n)
            if not fits[0]:
                term[n, :2] = Moments.terms(_columns(values_CIJ), shift_2C[0])
            if not fits[1] and previous_CIJ is not None:
                term[n, 2:] = Moments.terms(_columns(values_CIJ - previous_CIJ), shift_2C[1])
            previous_CIJ, last = values_CIJ, n
        return _Sums(digest, term, shift_2C, check)

    def _shift(self, count: int) -> Floats:
        return _shifts_of([self._state(n) for n in range(count)])

    def total(self, trained: int) -> Floats:
        """Sum of the states of the training period."""
        kept = {
            int(second): (file, at)
            for file in self._parts.files
            for at, second in enumerate(file["block_second"][()])
        }
        total = _Total(self._raw.shape[1:])
        for first in range(0, trained, BLOCK):
            place = kept.get(self._raw.units[first])
            if place is not None and first + BLOCK <= trained:
                total.add(place[0]["block_sum"][place[1]])
                continue
            block_CIJ = np.zeros(self._raw.shape[1:])
            for n in range(first, min(first + BLOCK, trained)):
                block_CIJ += self._state(n)
            total.add(block_CIJ)
        return total.sum_CIJ


@dataclass(frozen=True, eq=False)
class _Raw:
    """Raw files, opened, and what is taken from them."""

    source: Path
    config: WeatherExtraction
    reader: Catalogue
    names: tuple[str, ...]
    static_FIJ: NDArray[np.float32]
    account: Account
    reference: dict[str, str] | None
    """What is said of the source if states stay there."""
    rounding: Rounding | None

    @classmethod
    def open(cls, source: Path, config: WeatherConfig | WeatherExtraction) -> "_Raw":
        wanted, account = WeatherExtraction.model_validate(config.model_dump()), Account()
        source, stays = resolve_address(source), wanted.store == "reference"
        reader = Catalogue(source, open_sources(source, account, whole=stays), wanted)
        reference = reference_to(reader, source) if stays else None
        static_FIJ = reader.static().astype(np.float32)
        names = channel_names(wanted.surface, wanted.air, reader.grid.level)
        rounding = _rounding(wanted.keep_bits, len(names))
        return cls(source, wanted, reader, names, static_FIJ, account, reference, rounding)

    def divided(self, split: SplitConfig) -> tuple[NDArray[np.int64], Account]:
        """Times of training, validation and test, and the account of what is taken."""
        ranges = time_split(len(self.reader.time), split)
        self.reader.count(self.account, ranges)
        return ranges, self.account

    @cached_property
    def units(self) -> list[int]:
        """Times of the states, seconds since 1970."""
        return [int(second) for second in np.round(self.reader.time * 86_400)]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all states."""
        return len(self.reader.time), len(self.names), *self.reader.grid.shape

    def facts(self) -> dict[str, Any]:
        """What describes the states and is the same in all parts."""
        return {
            "config": self.config.model_dump(mode="json", exclude_none=True),
            "channels": list(self.names),
            "units": self.reader.units,
            "cells": digest_of(*(getattr(self.reader.grid, axis) for axis in AXES)),
        }

    def write_axes(self, file: h5py.File, ranges: NDArray[np.int64]) -> None:
        """Write what is not of single states."""
        for name, values in (
            ("static", self.static_FIJ),
            ("time", self.reader.time),
            *((axis, getattr(self.reader.grid, axis)) for axis in AXES),
            ("split", ranges),
        ):
            hdf5.create_dataset(file, name, values)

    def create_states(self, file: h5py.File, shape: tuple[int, ...]) -> h5py.Dataset | None:
        """Add the dataset of states, unless they stay where they are."""
        if self.reference is not None:
            return None
        chunks = (1, hdf5.rows_per_chunk(shape[1:], np.float32), *shape[2:])
        packed = self.rounding is not None
        return hdf5.create_dataset(
            file, "state", shape=shape, dtype=np.float32, chunks=chunks, packed=packed
        )

    def copy(
        self,
        numbers: Sequence[int],
        state: h5py.Dataset | None,
        summed: int,
        on_block: Any,
        progress: Progress | None,
    ) -> _Sums:
        """Write some states, ascending, or look at those that stay where they are.

        Sums are of those before number ``summed``, of which ``on_block`` is called with that of each block
        that is among them as a whole.
        """
        self.reader.look_at(np.array(numbers, dtype=np.int64))
        shift_2C = self._shifts() if len(numbers) else np.zeros((2, len(self.names)))
        digest = np.zeros((len(numbers), 32), dtype=np.uint8)
        term = np.full((len(numbers), 4, len(self.names)), np.nan)
        check = np.zeros(len(numbers) if state is None else 0, dtype=np.uint32)
        # Of all states: to get new memory for each takes longer than the sums.
        block_CIJ, scratch_CIJ, *value_2 = np.zeros((4, *self.shape[1:]))
        in_block = done = 0
        for run in runs(numbers):
            previous_CIJ = None
            for begin, block_SCIJ in self._blocks(run, self.rounding):
                if state is not None:
                    state[done : done + len(block_SCIJ)] = block_SCIJ
                for n, raw_CIJ in enumerate(block_SCIJ, begin):
                    row = done + n - begin
                    content = hashlib.sha256(raw_CIJ.data).digest()
                    digest[row] = np.frombuffer(content, dtype=np.uint8)
                    if state is None:
                        check[row] = checksum(raw_CIJ)
                    if n >= summed:
                        continue
                    values_CIJ = value_2[n % 2]
                    values_CIJ[:] = raw_CIJ
                    if n % BLOCK == 0 or n == run.start:
                        block_CIJ[:], in_block = 0, 0
                    block_CIJ += values_CIJ
                    in_block += 1
                    if in_block == BLOCK or n + 1 == summed < self.shape[0]:
                        on_block(block_CIJ)
                    scratch = _columns(scratch_CIJ)
                    term[row, :2] = Moments.terms(_columns(values_CIJ), shift_2C[0], out=scratch)
                    if previous_CIJ is not None:
                        np.subtract(values_CIJ, previous_CIJ, out=scratch_CIJ)
                        term[row, 2:] = Moments.terms(scratch, shift_2C[1], out=scratch)
                    previous_CIJ = values_CIJ
                done += len(block_SCIJ)
                if progress is not None:
                    progress(done, len(numbers))
        return _Sums(digest, term, shift_2C, check)

    def _shifts(self) -> Floats:
        """Means of the first state and of the first change: parts take them from the same states."""
        return _shifts_of(self.states(range(min(2, self.shape[0]))))

    def states(self, times: range) -> list[Floats]:
        """Some states, beside those that are written."""
        rounding = _rounding(self.config.keep_bits, len(self.names))
        blocks = self._blocks(times, rounding)
        return [state.astype(np.float64) for _, block in blocks for state in block]

    def _blocks(
        self, times: range, rounding: Rounding | None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """States as they are written, see `Catalogue.blocks`."""
        for begin, block_SCIJ in self.reader.blocks(times):
            if rounding is not None:
                rounding.apply(block_SCIJ)
            yield begin, block_SCIJ

    def finish(
        self,
        file: h5py.File,
        trained: int,
        sums: _Sums,
        total_CIJ: Floats,
        evidence: Sequence[list[dict[str, Any]]],
    ) -> None:
        """Add statistics, digest and attributes; refuses no-data values and channels without variation."""
        refuse_no_data(evidence, self.config.missing)
        cells = int(np.prod(total_CIJ.shape[1:]))
        term = sums.term[:trained]
        moments = Moments.of_terms(cells, sums.shift[0], term[:, 0], term[:, 1])
        changes = Moments.of_terms(cells, sums.shift[1], term[1:, 2], term[1:, 3])
        constant = ", ".join(
            name for name, std in zip(self.names, moments.std, strict=True) if not std > 0
        )
        if constant:
            raise DataError(
                f"{self.source}: {constant} is the same everywhere at all times of the training period; "
                "leave it out of the dataset's variables"
            )
        for name, values in (
            ("climatology", (total_CIJ / trained).astype(np.float32)),
            ("stats/mean", moments.mean),
            ("stats/std", moments.std),
            ("stats/increment_std", changes.std),
        ):
            hdf5.create_dataset(file, name, values)
        if self.reference is not None:
            hdf5.create_dataset(file, "check", sums.check)
            file.attrs["reference"] = json.dumps(self.reference, sort_keys=True)
        described = self.config.model_dump(exclude_none=True, exclude={"store", "compress"})
        described["split"] = file["split"][()].tolist()
        config = json.dumps(described, sort_keys=True)
        content = hashlib.sha256(sums.digest.tobytes())
        content.update(config.encode())
        content.update(file["time"][()].tobytes())
        named = {
            "surface": self.config.surface,
            "air": self.config.air,
            "static": self.config.static,
            "channels": self.names,
        }
        file.attrs.update(
            schema=SCHEMA,
            **{key: hdf5.strings(names) for key, names in named.items()},
            config=config,
            hours=float(self.config.hours),
            digest=content.hexdigest()[:16],
        )


def _shifts_of(first: Sequence[Floats]) -> Floats:
    """Means of the first of some states and of the first change, [2, C]."""
    change = first[1] - first[0] if len(first) > 1 else np.zeros_like(first[0])
    return np.array([Moments.shift_of(_columns(values)) for values in (first[0], change)])


def _rounding(keep_bits: int | None, channels: int) -> Rounding | None:
    return None if keep_bits is None else Rounding(keep_bits, channels)


def _name_error(file: h5py.File, rounding: Rounding | None, account: Account) -> None:
    """Say in the file, the account and the log how far states are from those of the raw files."""
    if rounding is not None:
        channels = [str(name) for name in file.attrs["channels"]]
        found = rounding.summary(channels, file["stats/increment_std"][()])
        file.attrs["compression"] = json.dumps(found)
        account.note("compression", found)


def channel_names(
    surface: Sequence[str], air: Sequence[str], levels: Sequence[float] | Floats
) -> tuple[str, ...]:
    """Names of the channels in the order of a state: ``2t``, ..., ``z_500``, ..."""
    return (*surface, *(f"{name}_{level:g}" for name in air for level in levels))


def _columns(values_CIJ: Floats) -> Floats:
    return values_CIJ.reshape(len(values_CIJ), -1).T
