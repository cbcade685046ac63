"""Files of weather as `xarray` datasets on a grid that is the same whatever the files' conventions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from millrace.errors import DataError, first_line

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

AXES = ("level", "latitude", "longitude")
_NAMES = {"lat": "latitude", "lon": "longitude", "pressure_level": "level", "valid_time": "time"}
_KINDS = (".nc", ".nc4", ".zarr", ".csv")


def open_sources(source: Path) -> list[tuple[Path, xr.Dataset]]:
    """Open a NetCDF or CSV file, a Zarr store or a directory of them, lazily, in the order of time.

    Raises `DataError` if nothing of the kind is there, or it is not readable.
    """
    source = Path(source)
    if source.is_dir() and source.suffix != ".zarr":
        paths = sorted(path for path in source.iterdir() if path.suffix in _KINDS)
    else:
        paths = [source]
    if not paths or not paths[0].exists():
        raise DataError(
            f"{source}: no weather there; expected a Zarr store, or files of NetCDF or CSV "
            f"({', '.join(_KINDS)})"
        )
    opened = [(path, _open(path)) for path in paths]
    constants = [data for _, data in opened if "time" not in data.dims]
    series = [(path, data) for path, data in opened if "time" in data.dims]
    if not series:
        raise DataError(
            f"{source}: no file has an axis of time; add the states to the static fields"
        )
    if constants:  # static fields in a file of their own
        series = [
            (path, data.merge(constants[0], compat="override", join="override"))
            for path, data in series
        ]
    return sorted(series, key=lambda pair: pair[1]["time"].values[0])


def _open(path: Path) -> xr.Dataset:
    try:
        if path.suffix == ".csv":
            return _from_csv(path)
        data = xr.open_dataset(path, engine="zarr" if path.suffix == ".zarr" else "netcdf4")
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: not readable as {path.suffix[1:]} ({first_line(error)}); copy it again"
        ) from error
    return data.rename({old: new for old, new in _NAMES.items() if old in data.dims})


def _from_csv(path: Path) -> xr.Dataset:
    """Columns ``time,lat,lon,level,<variables>``; the level of surface variables is blank.

    Without the column ``time`` it holds static fields: ``lat,lon,<fields>``.
    """
    table = pd.read_csv(path, skipinitialspace=True)
    static = "time" not in table
    needed = {"lat", "lon"} if static else {"time", "lat", "lon", "level"}
    if missing := sorted(needed - set(table.columns)):
        raise DataError(
            f"{path}:1: no column {missing[0]!r}; expected time,lat,lon,level,<variables> (or "
            "lat,lon,<static fields>)"
        )
    values = [name for name in table.columns if name not in {"time", "lat", "lon", "level"}]
    for name in values:
        text = pd.to_numeric(table[name], errors="coerce")
        wrong = np.flatnonzero(text.isna() & table[name].notna())
        if len(wrong):
            raise DataError(
                f"{path}:{wrong[0] + 2}: {name} is {table[name][wrong[0]]!r}, not a number"
            )
        table[name] = text
    if not static:
        try:
            table["time"] = pd.to_datetime(table["time"], format="ISO8601").astype("datetime64[ns]")
        except ValueError as error:
            raise DataError(f"{path}: column time: {error}") from None
    axes = ["lat", "lon"] if static else ["time", "lat", "lon"]
    at_levels = np.zeros(len(table), dtype=bool) if static else table["level"].notna()
    parts = []
    for rows, index in ((table[~at_levels], axes), (table[at_levels], [*axes, "level"])):
        used = [name for name in values if rows[name].notna().any()]
        if not used:
            continue
        if rows.duplicated(index).any():
            twice = int(np.flatnonzero(rows.duplicated(index))[0])
            raise DataError(f"{path}:{rows.index[twice] + 2}: this place and time is there twice")
        parts.append(rows.set_index(index)[used].to_xarray())
    data = xr.merge(parts, join="outer", compat="no_conflicts")
    order = [a for a in ("time", "level", "lat", "lon") if a in data.dims]
    return data.transpose(*order).rename({"lat": "latitude", "lon": "longitude"})


@dataclass(frozen=True, eq=False)
class Grid:
    """Axes of the states, and where the files have them."""

    level: Floats
    """hPa, ascending."""
    latitude: Floats
    """Degrees, descending."""
    longitude: Floats
    """Degrees from 0 on, ascending."""
    levels_at: Ints
    rows_at: Ints
    columns_at: Ints

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.latitude), len(self.longitude)

    def same_as(self, other: "Grid") -> bool:
        """Whether the axes are equal."""
        pairs = ((getattr(self, axis), getattr(other, axis)) for axis in AXES)
        return all(a.shape == b.shape and np.allclose(a, b) for a, b in pairs)

    def take(self, variable: xr.DataArray) -> Floats:
        """Values of a variable at one time, [L, I, J] or [I, J]."""
        axes = [axis for axis in AXES if axis in variable.dims]
        values = variable.transpose(*axes).values.astype(np.float64)
        values = values[..., self.rows_at, :][..., self.columns_at]
        return values[self.levels_at] if "level" in axes else values

    @staticmethod
    def constant(std_C: Floats, names: Sequence[str]) -> str:
        """Names of channels without any variation."""
        return ", ".join(n for n, std in zip(names, std_C, strict=True) if not std > 0)


def grid_of(path: Path, data: xr.Dataset, levels: Sequence[float]) -> Grid:
    """Find the axes of a dataset.

    The last row is left out where the number of rows is odd (both poles are there): patches must tile
    the grid. Raises `DataError` if an axis is missing, not monotonous, not that of the globe, or lacks a
    level.
    """
    for axis in AXES:
        if axis not in data:
            raise DataError(f"{path}: no axis {axis!r}; it has {', '.join(map(str, data.dims))}")
    present = np.atleast_1d(data["level"].values).astype(float)
    if str(data["level"].attrs.get("units", "hPa")).strip().lower() == "pa":
        present = present / 100.0
    wanted = np.sort(np.array(levels or present, dtype=float))
    missing = [level for level in wanted if not np.isclose(present, level).any()]
    if missing:
        raise DataError(
            f"{path}: no level of {missing[0]:g} hPa; it has "
            f"{', '.join(f'{v:g}' for v in np.sort(present))}"
        )
    latitude, longitude = (data[a].values.astype(float) for a in ("latitude", "longitude"))
    steps = np.diff(latitude)
    if not (len(latitude) > 1 and np.all(np.sign(steps) == np.sign(steps[0])) and steps[0]):
        raise DataError(f"{path}: latitudes neither ascend nor descend; sort the files by latitude")
    if np.abs(latitude).max() > 90.001:
        raise DataError(f"{path}: latitudes reach {np.abs(latitude).max():g}; expected degrees")
    rows = np.arange(len(latitude)) if steps[0] < 0 else np.arange(len(latitude))[::-1]
    rows = rows[: len(rows) // 2 * 2]
    east = longitude % 360.0
    columns = np.argsort(east)
    gaps = np.diff(np.append(east[columns], east[columns][0] + 360.0))
    if len(east) < 2 or not np.allclose(gaps, 360.0 / len(east), atol=1e-3):
        raise DataError(
            f"{path}: longitudes do not go once around the globe in equal steps; cut the data so that "
            "they do"
        )
    levels_at = np.array([np.argmin(np.abs(present - level)) for level in wanted])
    return Grid(wanted, latitude[rows], east[columns], levels_at, rows, columns)
