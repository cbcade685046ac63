"""Files of weather as `xarray` datasets with one set of names of axes, and where each has the grid's cells.

Shape suffixes: I latitudes, J longitudes, T times, L levels.
"""

import importlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from millrace.data.account import Account
from millrace.data.classic_netcdf import check_whole
from millrace.data.csv_lines import header_of, read_rows
from millrace.data.declared import check_hdf5
from millrace.data.recognise import kind_of
from millrace.data.units import conversion
from millrace.errors import DataError, first_line
from millrace.input_files import Address, is_there
from millrace.systems.weather.grids import MULTIPLE, columns_of, rows_of
from millrace.systems.weather.settings import AreaConfig
from millrace.systems.weather.zarr_stores import check_zarr, open_store

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Index = slice | Ints

AXES = ("level", "latitude", "longitude")
_NAMES = {
    "lat": "latitude", "lon": "longitude", "valid_time": "time", "pressure_level": "level",
    "isobaricInhPa": "level", "isobaricInPa": "level", "plev": "level", "pressure": "level", "lev": "level",
}  # fmt: skip
TIME_NAMES = ("time", *(name for name, axis in _NAMES.items() if axis == "time"))
"""Names of the axis of time in files."""
SINGLE = ("number", "realization", "member", "ensemble", "expver", "height", "surface", "step")
"""Axes that are dropped if they have one entry."""
_KINDS = (".nc", ".nc4", ".zarr", ".csv")
_OTHER_NAMES = (".grib", ".grb", ".grib2", ".grb2", ".zip", ".cdf", ".netcdf", "")
_OTHER_FILE, _FOLDER = "of another kind", "folders that are no Zarr store"
_SPARSE = 10  # times its rows that a grid may have
_HIGHEST_PRESSURE = 1_100.0
"""hPa."""
_COLUMNS = {
    "latitude": "lat", "longitude": "lon", "valid_time": "time", "pressure_level": "level", "plev": "level",
}  # fmt: skip
"""Other names of the columns of CSV."""


@dataclass(frozen=True, eq=False)
class Source:
    """A file, opened, and where it has the rows and columns of the grid."""

    path: Path
    data: xr.Dataset
    """With axes named time, level, latitude, longitude as far as it has them."""
    latitude: Floats
    """Degrees, descending."""
    longitude: Floats
    """Degrees, ascending."""
    part: Mapping[str, Index]
    """What is read of the axes of latitude and longitude."""
    rows_at: Index
    columns_at: Index
    """Where rows and columns of the grid are in that."""
    cells_cut: int
    """Cells that are left out so that patches tile the grid."""
    level_L: Floats
    """Pressure levels (hPa) in the order of the file; empty if it has none."""
    second_T: Ints
    """Times in seconds since 1970 in the order of the file; empty if it has none."""

    def cut(self, variable: xr.DataArray) -> xr.DataArray:
        """The part of a variable that is read."""
        return variable.isel({axis: at for axis, at in self.part.items() if axis in variable.dims})


def open_sources(
    source: Path,
    account: Account | None = None,
    whole: bool = False,
    cache: Path | None = None,
) -> list[tuple[Path, xr.Dataset]]:
    """Open a file of NetCDF, GRIB or CSV, a Zarr store or a directory of them, lazily.

    A file of GRIB may be several datasets. ``account`` counts what is no such file. The source may be the
    `Address` of a Zarr store, whose chunks are kept in the directory ``cache``, see `ReliableStore`; with
    ``whole`` a chunk that is missing here is an error, too. Raises `DataError` if nothing of the kind is
    there, or it is not readable.
    """
    if isinstance(source, Address):
        return [(source, data) for data in _open(source, whole, cache)]
    source = Path(source)
    paths = [source]
    if source.is_dir() and not is_store(source):
        inside = sorted(source.iterdir())
        paths = [path for path in inside if _is_weather(path)]
        # An archive beside what was unpacked from it is no fault.
        paths = paths or [path for path in inside if path.is_file() and kind_of(path)[0] == "zip"]
        if account is not None:
            for path in set(inside) - set(paths):
                account.leave_out("files", _FOLDER if path.is_dir() else _OTHER_FILE)
    if not paths or not is_there(paths[0]):
        raise DataError(
            f"{source}: no weather there; expected a Zarr store, or files of NetCDF, GRIB or CSV "
            f"({', '.join(_KINDS)})"
        )
    return [(path, data) for path in paths for data in _open(path, whole)]


def _is_weather(path: Path) -> bool:
    """By the name, or, of names that say nothing for certain, by the content."""
    if path.suffix in _KINDS or is_store(path):
        return True
    if path.is_dir() or path.suffix not in _OTHER_NAMES or not (path.suffix or path.is_file()):
        return False
    return kind_of(path)[0] in ("netcdf", "grib")


def is_store(path: Path) -> bool:
    """Whether a path is that of a Zarr store; at an address nothing else is read."""
    known = isinstance(path, Address) or path.suffix == ".zarr"
    return known or any((path / one).exists() for one in ("zarr.json", ".zgroup"))


def _open(path: Path, whole: bool = False, cache: Path | None = None) -> list[xr.Dataset]:
    in_store = is_store(path)
    on_disk = not isinstance(path, Address) and not path.is_dir()
    kind, what = kind_of(path) if on_disk else ("", "")
    name = "GRIB" if kind == "grib" else path.suffix[1:] or "NetCDF"
    try:
        if kind == "grib":
            return [with_known_axes(data) for data in _from_grib(path, what)]
        if path.suffix == ".csv":
            return [_from_csv(path)]
        if in_store:
            check_zarr(path)
        else:
            check_whole(path)
            check_hdf5(path)
        careful = whole or isinstance(path, Address)
        # Absolute: no name of a file is an address of something else.
        opened: Any = open_store(path, cache) if in_store and careful else path.absolute()
        data = xr.open_dataset(opened, engine="zarr" if in_store else "netcdf4")
    except DataError:
        raise
    except Exception as error:
        reason = (
            f"; {what}" if what and kind != "grib" else f" ({first_line(error)}); copy it again"
        )
        raise DataError(f"{path}: not readable as {name}{reason}") from error
    return [with_known_axes(data)]


def _from_grib(path: Path, what: str) -> list[xr.Dataset]:
    """Each variable and kind of level, by the optional package cfgrib."""
    try:
        cfgrib = importlib.import_module("cfgrib")
    except Exception as error:  # also if ecCodes is missing below it
        raise DataError(
            f"{path}: {what}, or install what reads it, the extra grib: `pip install -e '.[grib]'` "
            f"({first_line(error)})"
        ) from None
    # Without a file for its index, of which a truncated file would leave a traceback in the log.
    fields = cfgrib.dataset.open_fileindex(
        cfgrib.messages.FileStream(str(path), errors="raise"),
        indexpath="",
        computed_keys=cfgrib.cfmessage.COMPUTED_KEYS,
    )
    for values, messages in fields.field_ids_index:
        if len(messages) > 1:  # cfgrib takes the first
            of = dict(zip(fields.index_keys, values, strict=True))
            when = np.datetime64(int(of["time"]), "s") + np.timedelta64(int(3600 * of["step"]), "s")
            raise DataError(
                f"{path}: {len(messages)} messages of parameter {of['paramId']} at "
                f"{of['typeOfLevel']} {of['level:float']:g} at {when.astype('datetime64[m]')}; keep one"
            )
    with tempfile.TemporaryDirectory() as folder:
        # As a rule the index is kept beside the data, where may be no room.
        options = {"indexpath": f"{folder}/{{short_hash}}.idx", "errors": "raise"}
        found: list[xr.Dataset] = cfgrib.xarray_store.open_variable_datasets(
            str(path), backend_kwargs=options
        )
    return found


def with_known_axes(data: xr.Dataset) -> xr.Dataset:
    """The same with the names of axes that are used here, without those that have one entry."""
    valid = data.variables.get("valid_time")
    if valid is not None and "time" in data.variables:
        # The time of a forecast's start and that which it is for: states are of the latter.
        if valid.dims == ("time",):
            data = data.assign_coords(time=("time", valid.values, valid.attrs))
            data = data.drop_vars("valid_time")
        elif "time" not in data.dims:
            data = data.drop_vars("time")
            if valid.ndim == 1:  # the steps of one forecast
                data = data.swap_dims({str(valid.dims[0]): "valid_time"})
    single = [axis for axis in SINGLE if data.sizes.get(axis) == 1]
    data = data.squeeze(single, drop=True)
    names: dict[str, str] = {}
    for name, variable in data.variables.items():
        new = _NAMES.get(str(name)) or _by_standard_name(variable)
        taken = new in data.variables or new in data.dims or new in names.values()
        if new and variable.ndim <= 1 and not taken:
            names[str(name)] = new
    for axis in data.dims:  # without coordinates
        new = _NAMES.get(str(axis))
        if new and axis not in data.variables and new not in data.dims:
            names[str(axis)] = new
    data = data.rename(names)
    # Axes that are numbered, such as y, x and record, with their values beside.
    at = {
        axis: data[axis].dims[0]
        for axis in ("time", *AXES)
        if axis in data and data[axis].ndim == 1
    }
    swapped = {
        dim: axis for axis, dim in at.items() if list(at.values()).count(dim) == 1 and dim != axis
    }
    return data.swap_dims(swapped)


def _by_standard_name(variable: xr.Variable) -> str | None:
    standard = {"latitude": "latitude", "longitude": "longitude", "air_pressure": "level"}
    is_axis = variable.ndim == 1
    return standard.get(str(variable.attrs.get("standard_name"))) if is_axis else None


def _from_csv(path: Path) -> xr.Dataset:
    """Columns ``time,lat,lon,level,<variables>``; surface variables have no level, or a blank one.

    Without the column ``time`` it holds static fields: ``lat,lon,<fields>``.
    """
    header = header_of(path)
    names = [_COLUMNS.get(name, name) for name in header]
    names = names if len(set(names)) == len(names) else header
    static = "time" not in names
    if missing := sorted({"lat", "lon"} - set(names)):
        raise DataError(
            f"{path}:1: no column {missing[0]!r}; expected time,lat,lon,level,<variables> (or "
            "lat,lon,<static fields>)"
        )
    numbers = [old for old, new in zip(header, names, strict=True) if new != "time"]
    table = next(rows := read_rows(path, numbers))
    next(rows, None)  # the check of the end of the file
    table.columns = pd.Index(names)
    axes = ["lat", "lon"] if static else ["time", "lat", "lon"]
    for name in axes:
        blank = np.flatnonzero(table[name].isna())
        if len(blank):
            raise DataError(
                f"{path}:{table.index[blank[0]]}: {name} is blank; every row needs its place and time"
            )
    if not static:
        times = pd.to_datetime(table["time"].astype(str), format="ISO8601", errors="coerce")
        wrong = np.flatnonzero(times.isna())
        if len(wrong):
            raise DataError(
                f"{path}:{table.index[wrong[0]]}: time is {str(table['time'].iloc[wrong[0]])[:40]!r}; "
                "expected ISO 8601, such as 2020-01-31T06:00"
            )
        table["time"] = times.astype("datetime64[ns]")
    values = [name for name in table.columns if name not in {"time", "lat", "lon", "level"}]
    no_level = np.zeros(len(table), dtype=bool)
    at_levels = table["level"].notna() if "level" in table and not static else no_level
    parts = []
    for these, index in ((table[~at_levels], axes), (table[at_levels], [*axes, "level"])):
        used = [name for name in values if these[name].notna().any()]
        if not used:
            continue
        if these.duplicated(index).any():
            twice = int(np.flatnonzero(these.duplicated(index))[0])
            raise DataError(f"{path}:{these.index[twice]}: this place and time is there twice")
        cells = math.prod(these[name].nunique() for name in index)
        if cells > _SPARSE * len(these) + 1000:
            raise DataError(
                f"{path}: its {len(these):,} rows are {cells:,} places and times together; expected a "
                "grid, with a row for each time, latitude, longitude and level"
            )
        parts.append(these.set_index(index)[used].to_xarray())
    if not parts:
        raise DataError(f"{path}: no values in it")
    data = xr.merge(parts, join="outer", compat="no_conflicts")
    order = [a for a in ("time", "level", "lat", "lon") if a in data.dims]
    return data.transpose(*order).rename({"lat": "latitude", "lon": "longitude"})


def locate(path: Path, data: xr.Dataset, area: AreaConfig | None = None) -> Source:
    """Find times, levels and the cells of the globe, or of an ``area``, in a dataset by their coordinates.

    Patches must tile the grid: of an odd number of rows with both poles the last one is left out, and an
    area is cut to multiples of `MULTIPLE`. Raises `DataError` if an axis is missing, has holes, does not
    cover the area, or is in an unknown unit.
    """
    for axis in AXES[1:]:
        if axis not in data.variables:
            raise DataError(f"{path}: no axis {axis!r}; it has {', '.join(map(str, data.dims))}")
        if data[axis].dims != (axis,):
            raise DataError(
                f"{path}: {axis} has the axes {', '.join(map(str, data[axis].dims)) or 'of a point'}; "
                "expected a grid of rows of latitude and columns of longitude: regrid it, for instance by "
                "`cdo remapbil` or, if it is a reduced Gaussian grid, by `cdo setgridtype,regular`"
            )
    latitude, longitude = (data[a].values.astype(float) for a in ("latitude", "longitude"))
    if not (np.isfinite(latitude).all() and np.isfinite(longitude).all()):
        raise DataError(f"{path}: a latitude or longitude is not a number; mend the axis")
    if np.abs(latitude).max(initial=0) > 90.001:
        raise DataError(f"{path}: latitudes reach {np.abs(latitude).max():g}; expected degrees")
    rows, all_rows = rows_of(path, latitude, area)
    columns, east, all_columns = columns_of(path, longitude, area)
    if min(len(rows), len(columns)) < MULTIPLE:
        raise DataError(
            f"{path}: {all_rows} x {all_columns} cells; expected {MULTIPLE} x {MULTIPLE} or more"
        )
    in_store = is_store(path)
    latitudes, rows_at = _within(rows, in_store)
    longitudes, columns_at = _within(columns, in_store)
    return Source(
        path=path,
        data=data,
        latitude=latitude[rows],
        longitude=east,
        part={"latitude": latitudes, "longitude": longitudes},
        rows_at=rows_at,
        columns_at=columns_at,
        cells_cut=all_rows * all_columns - len(rows) * len(columns),
        level_L=_levels(path, data),
        second_T=_seconds(path, data),
    )


def _within(at: Ints, in_store: bool) -> tuple[Index, Index]:
    """What is read of an axis so that the entries ``at`` are among it, and where they are in that.

    A store gives what is asked for, and each chunk once; files are read from the first to the last.
    """
    first, last = int(at.min()), int(at.max())
    if in_store and last - first >= len(at):
        read = np.sort(at)
        return read, index_of(np.searchsorted(read, at))
    return slice(first, last + 1), index_of(at - first)


def _levels(path: Path, data: xr.Dataset) -> Floats:
    if "level" not in data.variables:
        return np.empty(0)
    level_L = np.atleast_1d(data["level"].values).astype(float)
    unit = data["level"].attrs.get("units")
    factors = conversion("hPa" if unit is None else str(unit), "hPa")
    if factors is None:
        raise DataError(
            f"{path}: level is in {unit!r}; expected a pressure: interpolate to pressure levels, or mend "
            "its attribute units"
        )
    level_L = level_L if factors == (1.0, 0.0) else level_L * factors[0]
    # Powers of ten in binary leave a rest that names of channels would show.
    level_L = level_L if unit is None else np.round(level_L, 9)
    if not np.isfinite(level_L).all() or level_L.min(initial=1) <= 0:
        raise DataError(f"{path}: a level is not a pressure above 0; mend the axis")
    if level_L.max(initial=0) > _HIGHEST_PRESSURE:
        said = "has no attribute units" if unit is None else f"is said to be in {unit!r}"
        raise DataError(
            f"{path}: level {said}, but {level_L.max():g} hPa is no pressure of the air; write the right "
            "unit, perhaps 'Pa'"
        )
    if len(np.unique(level_L)) < len(level_L):
        raise DataError(f"{path}: a level is there twice; expected each once")
    return level_L


def _seconds(path: Path, data: xr.Dataset) -> Ints:
    if "time" not in data.variables:
        if "time" in data.dims:
            raise DataError(f"{path}: its axis time has no values; give the times")
        return np.empty(0, dtype=np.int64)
    times = np.atleast_1d(data["time"].values)
    if not np.issubdtype(times.dtype, np.datetime64):
        raise DataError(f"{path}: its times are not dates of the usual calendar; give them as such")
    if np.isnat(times).any():
        raise DataError(f"{path}: one of its times is missing; mend the axis")
    return np.round(hours_of(times) * 3600.0).astype(np.int64)


def hours_of(times: NDArray) -> Floats:
    """Hours since 1970."""
    return (times - np.datetime64("1970-01-01")) / np.timedelta64(1, "h")


def index_of(at: Ints) -> Index:
    """The same indices as a slice if they are evenly spaced, which makes a view."""
    steps = np.unique(np.diff(at))
    if len(steps) != 1 or abs(int(steps[0])) != 1:
        return at
    step, last = int(steps[0]), int(at[-1])
    stop = last + step
    return slice(int(at[0]), stop if stop >= 0 else None, step)


def same_cells(one: Source, other: Source) -> bool:
    """Whether two files have the same rows and columns, wherever they stand."""
    pairs = ((one.latitude, other.latitude), (one.longitude, other.longitude))
    return all(a.shape == b.shape and np.allclose(a, b, atol=1e-4) for a, b in pairs)


def listed_levels(levels: Sequence[float] | Floats) -> str:
    """Levels for a message, hPa."""
    return ", ".join(f"{level:g}" for level in np.sort(np.asarray(levels)))
