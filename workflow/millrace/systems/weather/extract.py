"""Weather in NetCDF, Zarr or CSV -> ``weather.h5``: states on one grid, in SI units, checked.

Names are found in the table `millrace.systems.weather.units.ALIASES`; values are taken by their
coordinates, from whatever file has them and in whatever order of its axes. Latitudes are turned to descend,
longitudes to begin at 0, units to SI. A value that is not finite is an error that names variable and time:
who made the data may fill gaps, this does not.

File (schema ``millrace.weather/1``): ``state`` float32[T, C, I, J], surface variables first, then each
variable of the air level by level; ``static`` float32[F, I, J]; ``time`` (days since 1970), ``latitude``,
``longitude``, ``level`` (hPa); ``split``; of the training period ``climatology``, the mean state [C, I, J],
and ``stats`` of each channel.

Shape suffixes: T times, C channels, F static fields, L levels, I latitudes, J longitudes.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from millrace.data import hdf5
from millrace.data.account import Account
from millrace.data.split import Moments, SplitConfig, time_split
from millrace.errors import DataError
from millrace.systems.base import Progress
from millrace.systems.weather.catalogue import Catalogue
from millrace.systems.weather.settings import WeatherConfig, WeatherExtraction
from millrace.systems.weather.source import AXES, Floats, open_sources
from millrace.systems.weather.units import SCHEMA


def extract_weather(
    source: Path,
    output: Path,
    config: WeatherConfig | WeatherExtraction,
    split: SplitConfig,
    progress: Progress | None = None,
) -> None:
    """Read raw weather and write ``weather.h5``, with statistics of the training period.

    The source is a file of NetCDF, GRIB or CSV, a Zarr store, or a directory of them. ``progress`` is
    called with (times written, all). `samples.json` beside ``output`` says what was read, kept, and left
    out for which reason. Raises `DataError` if the files are not readable, do not fit each
    other, lack something, or hold what is not finite.
    """
    wanted = WeatherExtraction.model_validate(config.model_dump())
    account = Account()
    reader = Catalogue(source, open_sources(source, account), wanted)
    ranges = time_split(len(reader.time), split)
    names = channel_names(config.surface, config.air, reader.grid.level)
    shape = (len(reader.time), len(names), *reader.grid.shape)
    moments, changes = Moments(len(names)), Moments(len(names))
    chunks = (1, hdf5.rows_per_chunk(shape[1:], np.float32), *reader.grid.shape)
    content = hashlib.sha256()
    total_CIJ, previous_CIJ = np.zeros(shape[1:]), None
    with hdf5.create(output) as file:
        state = hdf5.create_dataset(file, "state", shape=shape, dtype=np.float32, chunks=chunks)
        for begin, block_SCIJ in reader.blocks():
            end = begin + len(block_SCIJ)
            state[begin:end] = block_SCIJ
            content.update(block_SCIJ.data)
            for index in range(begin, min(end, int(ranges[0, 1]))):
                values_CIJ = block_SCIJ[index - begin].astype(np.float64)
                total_CIJ += values_CIJ
                moments.add(_columns(values_CIJ))
                if previous_CIJ is not None:
                    changes.add(_columns(values_CIJ - previous_CIJ))
                previous_CIJ = values_CIJ
            if progress is not None:
                progress(end, len(reader.time))
        reader.check_no_data()
        constant = _constant(moments.std, names)
        if constant:
            raise DataError(
                f"{source}: {constant} is the same everywhere at all times of the training period; "
                "leave it out of the dataset's variables"
            )
        mean_CIJ = total_CIJ / (ranges[0, 1] - ranges[0, 0])
        for name, values in (
            ("static", reader.static().astype(np.float32)),
            ("time", reader.time),
            *((axis, getattr(reader.grid, axis)) for axis in AXES),
            ("split", ranges),
            ("climatology", mean_CIJ.astype(np.float32)),
            ("stats/mean", moments.mean),
            ("stats/std", moments.std),
            ("stats/increment_std", changes.std),
        ):
            hdf5.create_dataset(file, name, values)
        described = json.dumps(
            {**config.model_dump(exclude_none=True), "split": ranges.tolist()}, sort_keys=True
        )
        content.update(described.encode())
        content.update(reader.time.tobytes())
        file.attrs.update(
            schema=SCHEMA,
            surface=hdf5.strings(config.surface),
            air=hdf5.strings(config.air),
            static=hdf5.strings(config.static),
            channels=hdf5.strings(names),
            config=described,
            hours=float(config.hours),
            digest=content.hexdigest()[:16],
        )
    reader.count(account, ranges)
    account.write(output.with_name("samples.json"))


def channel_names(
    surface: Sequence[str], air: Sequence[str], levels: Sequence[float] | Floats
) -> tuple[str, ...]:
    """Names of the channels in the order of a state: ``2t``, ..., ``z_500``, ..."""
    return (*surface, *(f"{name}_{level:g}" for name in air for level in levels))


def _constant(std_C: Floats, names: Sequence[str]) -> str:
    """Names of channels without any variation."""
    return ", ".join(name for name, std in zip(names, std_C, strict=True) if not std > 0)


def _columns(values_CIJ: Floats) -> Floats:
    return values_CIJ.reshape(len(values_CIJ), -1).T
