"""Weather in NetCDF, Zarr or CSV -> ``weather.h5``: states on one grid, in SI units, checked.

The names are those of WeatherBench 2 (or the short ones of ECMWF), with axes time, level, latitude,
longitude. Latitudes are turned to descend, longitudes to begin at 0, units to SI. A value that is not
finite is an error that names variable and time: who made the data may fill gaps, this does not.

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
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from millrace.data import hdf5
from millrace.data.split import Moments, SplitConfig, time_split
from millrace.errors import DataError
from millrace.systems.base import Progress
from millrace.systems.weather.settings import WeatherConfig
from millrace.systems.weather.source import AXES, Floats, grid_of, open_sources
from millrace.systems.weather.units import SCHEMA, to_si

LONG_NAMES = {
    "2t": "2m_temperature",
    "10u": "10m_u_component_of_wind",
    "10v": "10m_v_component_of_wind",
    "msl": "mean_sea_level_pressure",
    "z": "geopotential",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "t": "temperature",
    "q": "specific_humidity",
}
"""Short names of ECMWF and those of WeatherBench 2."""
STATIC_NAMES = {"z": "geopotential_at_surface", "slt": "soil_type", "lsm": "land_sea_mask"}


def extract_weather(
    source: Path,
    output: Path,
    config: WeatherConfig,
    split: SplitConfig,
    progress: Progress | None = None,
) -> None:
    """Read raw weather and write ``weather.h5``, with statistics of the training period.

    The source is a NetCDF or CSV file, a Zarr store, or a directory of one kind of them. ``progress`` is
    called with (times written, all). Raises `DataError` if the files are not readable, do not fit each
    other, lack something, or hold what is not finite.
    """
    reader = _Reader(open_sources(source), config)
    ranges = time_split(len(reader.time), split)
    names = channel_names(config.surface, config.air, reader.grid.level)
    shape = (len(reader.time), len(names), *reader.grid.shape)
    moments, changes = Moments(len(names)), Moments(len(names))
    chunks = (1, hdf5.rows_per_chunk(shape[1:], np.float32), *reader.grid.shape)
    content = hashlib.sha256()
    total_CIJ = np.zeros(shape[1:])
    with hdf5.create(output) as file:
        state = hdf5.create_dataset(file, "state", shape=shape, dtype=np.float32, chunks=chunks)
        previous: NDArray[np.float32] | None = None
        for index in range(len(reader.time)):
            values_CIJ = reader.read(index)
            state[index] = values_CIJ
            content.update(values_CIJ.tobytes())
            if ranges[0, 0] <= index < ranges[0, 1]:
                total_CIJ += values_CIJ
                moments.add(_columns(values_CIJ))
                if previous is not None:
                    changes.add(_columns(values_CIJ.astype(np.float64) - previous))
                previous = values_CIJ
            if progress is not None:
                progress(index + 1, len(reader.time))
        constant = reader.grid.constant(moments.std, names)
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
        described = json.dumps({**config.model_dump(), "split": ranges.tolist()}, sort_keys=True)
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


def channel_names(
    surface: Sequence[str], air: Sequence[str], levels: Sequence[float] | Floats
) -> tuple[str, ...]:
    """Names of the channels in the order of a state: ``2t``, ..., ``z_500``, ..."""
    return (*surface, *(f"{name}_{level:g}" for name in air for level in levels))


class _Reader:
    """States of all sources as one series."""

    def __init__(self, sources: Sequence[tuple[Path, xr.Dataset]], config: WeatherConfig) -> None:
        self._sources, self._config = sources, config
        first, data = sources[0]
        self.grid = grid_of(first, data, config.levels)
        for path, other in sources[1:]:
            if not self.grid.same_as(grid_of(path, other, config.levels)):
                raise DataError(
                    f"{path}: its levels, latitudes or longitudes are not those of {first}; keep files of "
                    "one grid together"
                )
        hours = np.concatenate([_hours(path, one) for path, one in sources])
        place = [(s, i) for s, (_, one) in enumerate(sources) for i in range(one.sizes["time"])]
        kept = _every(hours, config.hours, first.parent if len(sources) > 1 else first)
        self._place = [place[i] for i in kept]
        self.time: Floats = hours[kept] / 24.0

    def read(self, index: int) -> NDArray[np.float32]:
        """One state, [C, I, J]."""
        number, step = self._place[index]
        path, data = self._sources[number]
        parts = []
        for name in (*self._config.surface, *self._config.air):
            variable = _variable(path, data, name, (LONG_NAMES.get(name, name), name))
            _check_axes(path, variable, name in self._config.air)
            values = to_si(name, self.grid.take(variable.isel(time=step)), variable, path)
            if not np.isfinite(values).all():
                when = np.datetime_as_string(data["time"].values[step], unit="m")
                raise DataError(
                    f"{path}: {variable.name} at {when} holds {_what(values)} that is not finite; mend the "
                    "data (it is not filled) or leave the variable or the period out"
                )
            parts.append(values.reshape(-1, *self.grid.shape))
        return np.concatenate(parts).astype(np.float32)

    def static(self) -> Floats:
        """Fields that do not change, [F, I, J]; of the first source that has them."""
        fields = []
        for name in self._config.static:
            # Some short names, such as z, are also those of variables of the air.
            known = [STATIC_NAMES.get(name, name), *([] if name in LONG_NAMES else [name])]
            holders = (one for one in self._sources if any(other in one[1] for other in known))
            path, data = next(holders, self._sources[0])
            variable = _variable(path, data, name, known)
            if "time" in variable.dims:
                variable = variable.isel(time=0)
            values = self.grid.take(variable)
            if not np.isfinite(values).all():
                raise DataError(
                    f"{path}: {variable.name} holds {_what(values)} that is not finite; mend it or leave "
                    "it out of the dataset's static fields"
                )
            fields.append(values)
        return np.array(fields).reshape(-1, *self.grid.shape)


def _variable(path: Path, data: xr.Dataset, name: str, known: Sequence[str]) -> xr.DataArray:
    for candidate in known:
        if candidate in data:
            return data[candidate]
    raise DataError(
        f"{path}: no variable {known[0]!r} (for {name}); it has "
        f"{', '.join(sorted(str(v) for v in data.data_vars))}"
    )


def _check_axes(path: Path, variable: xr.DataArray, in_air: bool) -> None:
    expected = ["time", *(["level"] if in_air else []), "latitude", "longitude"]
    if set(variable.dims) != set(expected):
        raise DataError(
            f"{path}: {variable.name} has the axes {', '.join(map(str, variable.dims))}; expected "
            f"{', '.join(expected)}"
        )


def _hours(path: Path, data: xr.Dataset) -> Floats:
    """Times in hours since 1970."""
    times = data["time"].values
    if not np.issubdtype(times.dtype, np.datetime64):
        raise DataError(f"{path}: its times are not dates of the usual calendar; give them as such")
    return (times - np.datetime64("1970-01-01")) / np.timedelta64(1, "h")


def _every(hours: Floats, step: int, path: Path) -> NDArray[np.int64]:
    """Indices of the times that are ``step`` hours apart, from the first on."""
    if len(hours) < 2 or not (np.diff(hours) > 0).all():
        raise DataError(f"{path}: expected at least two times, in ascending order and each once")
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


def _what(values: NDArray[Any]) -> str:
    bad = values[~np.isfinite(values)]
    return f"{len(bad)} value{'s' if len(bad) > 1 else ''} ({bad.flat[0]})"


def _columns(values_CIJ: NDArray[Any]) -> NDArray[Any]:
    return values_CIJ.reshape(len(values_CIJ), -1).T.astype(np.float64)
