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

Ranges of times can be extracted in parts, each in a file of its own (`extract_part`); `gather` makes a file
whose ``state`` is read through to theirs. Everything in it is the same, bit by bit, whatever the number of
parts: sums and digests are those of single states, and mean states those of blocks of `BLOCK` states, added
in the order of time.

Shape suffixes: T times, S times at once, C channels, F static fields, L levels, I latitudes, J longitudes,
N blocks.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data import hdf5
from millrace.data.account import Account
from millrace.data.parts import part_of
from millrace.data.split import Moments, SplitConfig, time_split
from millrace.errors import DataError
from millrace.input_files import resolve_address
from millrace.systems.base import Progress
from millrace.systems.settings import MissingConfig
from millrace.systems.weather.catalogue import Catalogue
from millrace.systems.weather.in_place import checksum, reference_to
from millrace.systems.weather.rounding import Rounding
from millrace.systems.weather.series import refuse_no_data
from millrace.systems.weather.settings import WeatherConfig, WeatherExtraction
from millrace.systems.weather.source import AXES, Floats, open_sources
from millrace.systems.weather.units import SCHEMA

BLOCK = 16
"""States whose sum is kept, for the mean state."""
PART_SCHEMA = "millrace.weather_part/2"


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
    raw = _Raw.open(source, config, split)
    times = range(len(raw.reader.time))
    total = _Total(raw.shape[1:])
    with hdf5.create(output) as file:
        sums = raw.copy(times, raw.create_states(file, raw.shape), total.add, progress)
        raw.write_axes(file)
        _finish(file, raw.facts(), sums, total.sum_CIJ, [raw.reader.evidence()])
        _name_error(file, raw.rounding, raw.account)
    raw.account.write(output.with_name("samples.json"))


def extract_part(
    source: Path,
    output: Path,
    config: WeatherConfig | WeatherExtraction,
    split: SplitConfig,
    part: int,
    parts: int,
    progress: Progress | None = None,
) -> None:
    """Write the states of one of several ranges of times, for `gather`.

    ``part`` counts from 0. Ranges are whole blocks of `BLOCK` states and, if they are long enough, whole
    chunks of the source; the last ones may be empty. Raises errors like `extract_weather`.
    """
    raw = _Raw.open(source, config, split)
    unit = math.lcm(BLOCK, raw.reader.steps_per_chunk)
    n_times = raw.shape[0]
    times = part_of(n_times, part, parts, unit if unit * parts <= n_times else BLOCK)
    with hdf5.create(output) as file:
        state = raw.create_states(file, (len(times), *raw.shape[1:]))
        trained = len(range(times.start, min(times.stop, raw.trained)))
        shape = (-(-trained // BLOCK), *raw.shape[1:])
        sum_NCIJ = hdf5.create_dataset(
            file, "block_sum", shape=shape, dtype=np.float64, chunks=(1, 1, *shape[2:])
        )
        number = iter(range(shape[0]))

        def keep(block_CIJ: Floats) -> None:
            sum_NCIJ[next(number)] = block_CIJ

        sums = raw.copy(times, state, keep, progress)
        raw.write_axes(file)
        for name in _SUMS:
            hdf5.create_dataset(file, f"sums/{name}", getattr(sums, name))
        file.attrs.update(
            schema=PART_SCHEMA,
            first=times.start,
            facts=json.dumps(raw.facts(), sort_keys=True),
            evidence=json.dumps(raw.reader.evidence()),
            account=json.dumps(raw.account.to_json()),
        )
        if raw.rounding is not None:
            file.attrs["rounding"] = raw.rounding.to_json()


def gather(parts: Sequence[Path], output: Path, progress: Progress | None = None) -> None:
    """Write ``weather.h5`` of the files of all parts, in which its states stay.

    ``progress`` is called with (parts done, all). Raises `DataError` if a part is missing, damaged, or not
    of the same raw files and settings as the first.
    """
    sums: list[_Sums] = []
    evidence, states, account, facts = [], [], Account(), {}
    total: _Total | None = None
    rounding: Rounding | None = None
    with hdf5.create(output) as file:
        for number, path in enumerate(parts):
            with hdf5.open_checked(path, PART_SCHEMA) as part:
                found = json.loads(part.attrs["facts"])
                if number == 0:
                    facts = found
                    rounding = _rounding(facts["keep_bits"], len(facts["channels"]))
                    total = _Total(part["block_sum"].shape[1:])
                    account.add(json.loads(part.attrs["account"]))
                    for name in ("static", "time", *AXES, "split"):
                        hdf5.create_dataset(file, name, part[name][()])
                if found != facts:
                    raise DataError(
                        f"{path}: not of the same raw files and settings as {parts[0]}; delete it and make "
                        "it again"
                    )
                first = sum(len(one.digest) for one in sums)
                if part.attrs["first"] != first:
                    raise DataError(
                        f"{path}: begins with state {part.attrs['first']}, expected state {first}; delete "
                        "the parts and make them again"
                    )
                assert total is not None
                for block_CIJ in part["block_sum"]:
                    total.add(block_CIJ)
                sums.append(_Sums(*(part["sums"][name][()] for name in _SUMS)))
                evidence.append(json.loads(part.attrs["evidence"]))
                if rounding is not None:
                    rounding.add(part.attrs["rounding"])
                if "state" in part:
                    states.append((path, part["state"].shape))
            if progress is not None:
                progress(number + 1, len(parts))
        if total is None or sum(len(one.digest) for one in sums) != len(file["time"]):
            raise DataError(f"{output}: its parts do not hold all times; make all of them again")
        if states:
            hdf5.create_virtual(file, "state", states, np.float32, output.parent)
        _finish(file, facts, _Sums.joined(sums), total.sum_CIJ, evidence)
        _name_error(file, rounding, account)
    account.write(output.with_name("samples.json"))


@dataclass(frozen=True, eq=False)
class _Sums:
    """What the digest and the statistics are made of, state by state."""

    digest: NDArray[np.uint8]
    """SHA-256 of each state, [T, 32]."""
    term: Floats
    """Of the training period, sums of values and their squares, and of changes, less ``shift``:
    [T, 4, C]."""
    shift: Floats
    """Means of the first state and of the first change, [2, C]."""
    check: NDArray[np.uint32]
    """Checksum of each state, [T], of those that stay where they are; else empty."""

    @classmethod
    def joined(cls, sums: "Sequence[_Sums]") -> "_Sums":
        """Those of all ranges, in the order of time."""
        digest, term, check = (
            np.concatenate([getattr(one, name) for one in sums])
            for name in ("digest", "term", "check")
        )
        return cls(digest, term, sums[0].shift, check)


_SUMS = tuple(field.name for field in fields(_Sums))


class _Total:
    """Sum of blocks in their order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.sum_CIJ = np.zeros(shape)

    def add(self, block_CIJ: Floats) -> None:
        self.sum_CIJ += block_CIJ


@dataclass(frozen=True, eq=False)
class _Raw:
    """Raw files, opened, and what is taken from them."""

    source: Path
    config: WeatherExtraction
    reader: Catalogue
    ranges: NDArray[np.int64]
    names: tuple[str, ...]
    static_FIJ: NDArray[np.float32]
    account: Account
    reference: dict[str, str] | None
    """What is said of the source if states stay there."""
    rounding: Rounding | None

    @classmethod
    def open(
        cls, source: Path, config: WeatherConfig | WeatherExtraction, split: SplitConfig
    ) -> "_Raw":
        wanted, account = WeatherExtraction.model_validate(config.model_dump()), Account()
        source, stays = resolve_address(source), wanted.store == "reference"
        reader = Catalogue(source, open_sources(source, account, whole=stays), wanted)
        reference = reference_to(reader, source) if stays else None
        ranges = time_split(len(reader.time), split)
        static_FIJ = reader.static().astype(np.float32)
        reader.count(account, ranges)
        names = channel_names(wanted.surface, wanted.air, reader.grid.level)
        rounding = _rounding(wanted.keep_bits, len(names))
        return cls(source, wanted, reader, ranges, names, static_FIJ, account, reference, rounding)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all states."""
        return len(self.reader.time), len(self.names), *self.reader.grid.shape

    @property
    def trained(self) -> int:
        """States of the training period, which is at the beginning."""
        return int(self.ranges[0, 1])

    def facts(self) -> dict[str, Any]:
        """What describes the samples and is the same in all parts."""
        described = self.config.model_dump(exclude_none=True, exclude={"store", "compress"})
        described["split"] = self.ranges.tolist()
        axes = [getattr(self.reader.grid, axis) for axis in AXES]
        content = b"".join(np.ascontiguousarray(one).tobytes() for one in (self.reader.time, *axes))
        return {
            "source": str(self.source),
            "config": json.dumps(described, sort_keys=True),
            "hours": float(self.config.hours),
            "surface": list(self.config.surface),
            "air": list(self.config.air),
            "static": list(self.config.static),
            "channels": list(self.names),
            "axes": hashlib.sha256(content).hexdigest(),
            "reference": self.reference,
            "keep_bits": self.config.keep_bits,
        }

    def write_axes(self, file: h5py.File) -> None:
        """Write what is not of single states."""
        for name, values in (
            ("static", self.static_FIJ),
            ("time", self.reader.time),
            *((axis, getattr(self.reader.grid, axis)) for axis in AXES),
            ("split", self.ranges),
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
        times: range,
        state: h5py.Dataset | None,
        on_block: Any,
        progress: Progress | None,
    ) -> _Sums:
        """Write the states of a range, or look at those that stay where they are.

        ``on_block`` is called with the sum of each of its blocks.
        """
        self.reader.look_at(times)
        shift_2C = self._shifts()
        digest = np.zeros((len(times), 32), dtype=np.uint8)
        term = np.zeros((len(times), 4, len(self.names)))
        check = np.zeros(len(times) if state is None else 0, dtype=np.uint32)
        block_CIJ = np.zeros(self.shape[1:])
        previous_CIJ = None
        if 0 < times.start < self.trained:
            [previous_CIJ] = self._states(range(times.start - 1, times.start))
        for begin, block_SCIJ in self._blocks(times):
            at = begin - times.start
            if state is not None:
                state[at : at + len(block_SCIJ)] = block_SCIJ
            for index, raw_CIJ in enumerate(block_SCIJ, begin):
                row = index - times.start
                digest[row] = np.frombuffer(hashlib.sha256(raw_CIJ.data).digest(), dtype=np.uint8)
                if state is None:
                    check[row] = checksum(raw_CIJ)
                if index >= self.trained:
                    continue
                values_CIJ = raw_CIJ.astype(np.float64)
                block_CIJ += values_CIJ
                if (index + 1) % BLOCK == 0 or index + 1 == self.trained:
                    on_block(block_CIJ)
                    block_CIJ[:] = 0
                term[row, :2] = Moments.terms(_columns(values_CIJ), shift_2C[0])
                if previous_CIJ is not None:
                    change = _columns(values_CIJ - previous_CIJ)
                    term[row, 2:] = Moments.terms(change, shift_2C[1])
                previous_CIJ = values_CIJ
            if progress is not None:
                progress(at + len(block_SCIJ), len(times))
        return _Sums(digest, term, shift_2C, check)

    def _shifts(self) -> Floats:
        """Means of the first state and of the first change: all parts take them from the same states."""
        first, *second = self._states(range(min(2, self.trained)))
        change = second[0] - first if second else np.zeros_like(first)
        return np.array([Moments.shift_of(_columns(values)) for values in (first, change)])

    def _states(self, times: range) -> list[Floats]:
        return [state.astype(np.float64) for _, block in self._blocks(times) for state in block]

    def _blocks(self, times: range) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """States as they are written, see `Catalogue.blocks`."""
        for begin, block_SCIJ in self.reader.blocks(times):
            if self.rounding is not None:
                self.rounding.apply(block_SCIJ)
            yield begin, block_SCIJ


def _rounding(keep_bits: int | None, channels: int) -> Rounding | None:
    return None if keep_bits is None else Rounding(keep_bits, channels)


def _name_error(file: h5py.File, rounding: Rounding | None, account: Account) -> None:
    """Say in the file, the account and the log how far states are from those of the raw files."""
    if rounding is not None:
        channels = [str(name) for name in file.attrs["channels"]]
        found = rounding.summary(channels, file["stats/increment_std"][()])
        file.attrs["compression"] = json.dumps(found)
        account.note("compression", found)


def _finish(
    file: h5py.File,
    facts: dict[str, Any],
    sums: _Sums,
    total_CIJ: Floats,
    evidence: Sequence[list[dict[str, Any]]],
) -> None:
    """Add statistics, digest and attributes; refuses no-data values and channels without variation."""
    config, ranges = json.loads(facts["config"]), file["split"][()]
    given = config.get("missing")
    refuse_no_data(evidence, None if given is None else MissingConfig.parse(given, "missing"))
    names, trained = facts["channels"], int(ranges[0, 1])
    cells = int(np.prod(total_CIJ.shape[1:]))
    term = sums.term[:trained]
    moments = Moments.of_terms(cells, sums.shift[0], term[:, 0], term[:, 1])
    changes = Moments.of_terms(cells, sums.shift[1], term[1:, 2], term[1:, 3])
    constant = ", ".join(name for name, std in zip(names, moments.std, strict=True) if not std > 0)
    if constant:
        raise DataError(
            f"{facts['source']}: {constant} is the same everywhere at all times of the training period; "
            "leave it out of the dataset's variables"
        )
    for name, values in (
        ("climatology", (total_CIJ / trained).astype(np.float32)),
        ("stats/mean", moments.mean),
        ("stats/std", moments.std),
        ("stats/increment_std", changes.std),
    ):
        hdf5.create_dataset(file, name, values)
    if facts["reference"] is not None:
        hdf5.create_dataset(file, "check", sums.check)
        file.attrs["reference"] = json.dumps(facts["reference"], sort_keys=True)
    content = hashlib.sha256(sums.digest.tobytes())
    content.update(facts["config"].encode())
    content.update(file["time"][()].tobytes())
    file.attrs.update(
        schema=SCHEMA,
        **{key: hdf5.strings(facts[key]) for key in ("surface", "air", "static", "channels")},
        config=facts["config"],
        hours=facts["hours"],
        digest=content.hexdigest()[:16],
    )


def channel_names(
    surface: Sequence[str], air: Sequence[str], levels: Sequence[float] | Floats
) -> tuple[str, ...]:
    """Names of the channels in the order of a state: ``2t``, ..., ``z_500``, ..."""
    return (*surface, *(f"{name}_{level:g}" for name in air for level in levels))


def _columns(values_CIJ: Floats) -> Floats:
    return values_CIJ.reshape(len(values_CIJ), -1).T
