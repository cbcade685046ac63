"""Grids and output of the ICON model: NetCDF files as they come, or small cases as CSV.

A source is a directory. NetCDF files with ``parent_cell_index`` are grids (the one of the fields and
those it was refined from), all others hold fields; see `open_source`. Of the fields only what is asked
for is read, some steps at a time.

Shape suffixes: N cells, T time steps, V variables.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cftime
import netCDF4
import numpy as np
from numpy.typing import NDArray

from millrace.errors import DataError, first_line
from millrace.systems.downscaling.icon_csv import open_csv
from millrace.systems.downscaling.icon_source import Floats, IconGrid, IconSource, unit_vectors

CELL_DIMENSIONS = ("ncells", "cell", "i")
ELEVATIONS = ("cell_elevation", "topography_c", "orog", "z_surface")
LAND_SHARES = ("fr_land", "FR_LAND", "sftlf", "land_sea_mask")
NEAR = 1e-4
"""Distance (rad) within which centres of cells are the same."""
EPOCH = "days since 1970-01-01"
_ABSOLUTE = "day as %Y%m%d.%f"


def open_source(directory: Path, variables: Sequence[str], levels: int) -> IconSource:
    """Open a directory of ICON files, searched with all folders below it.

    With a ``grid.csv`` it is read as CSV, see `millrace.systems.downscaling.icon_csv`. Each output file
    holds all ``variables``. The source needs the grid of the fields and ``levels`` - 1 ancestors of it.
    Raises `DataError` if files are missing, damaged, or do not fit each other.
    """
    directory = Path(directory)
    if (directory / "grid.csv").is_file():
        return open_csv(directory, variables, levels)
    paths = sorted(directory.rglob("*.nc"))
    if not paths:
        raise DataError(f"{directory}: no NetCDF file (*.nc) and no grid.csv in it")
    grids: list[Path] = []
    outputs: list[Path] = []
    for path in paths:
        with opened(path) as file:
            (grids if "parent_cell_index" in file.variables else outputs).append(path)
    if not grids or not outputs:
        what = "grid file (one with parent_cell_index)" if not grids else "output file"
        raise DataError(f"{directory}: no {what} among its {len(paths)} NetCDF files")
    known = [read_grid(path) for path in grids]
    chain = _chain(_grid_of_output(known, outputs[0]), known, levels)
    return IconSource(chain, NetcdfFields(outputs, tuple(variables), chain[0]))


def inspect(directory: Path) -> dict[str, Any]:
    """Tell what a new project needs to know of a directory: ``variables`` and ``levels``.

    The variables are the two-dimensional fields of all output files. Levels are refinements between a block
    and its cells: at most four, and as many as there are grid files. Raises `DataError` for a damaged file.
    """
    grids, variables = 0, dict[str, None]()
    for path in sorted(directory.rglob("*.nc")):
        with opened(path) as file:
            grids += "parent_cell_index" in file.variables
            for name, one in file.variables.items():
                on_cells = one.dimensions[:1] == ("time",) and one.dimensions[-1] in CELL_DIMENSIONS
                if on_cells and set(one.shape[1:-1]) <= {1}:
                    variables[name] = None
    found = {"levels": max(1, min(4, grids))} if grids else {}
    return {**found, **({"variables": [*variables]} if variables else {})}


def read_grid(path: Path) -> IconGrid:
    """Read an ICON grid file; `DataError` if it is damaged, or lacks or mixes up something."""
    with opened(path) as file:
        for name in ("clon", "clat", "cell_area", "neighbor_cell_index", "parent_cell_index"):
            if name not in file.variables:
                raise DataError(f"{path}: an ICON grid file has a variable {name!r}, this one not")
        lon, lat = (_radians(file[name]) for name in ("clon", "clat"))
        index = file["neighbor_cell_index"]
        neighbours = np.asarray(index[:], dtype=np.int64)
        # Dimensions are (nv, cell); some tools write them the other way round.
        neighbours = neighbours.T if index.dimensions[0] == "nv" else neighbours
        parent = np.asarray(file["parent_cell_index"][:], dtype=np.int64) - 1
        if neighbours.shape != (len(lon), 3) or parent.shape != (len(lon),):
            raise DataError(
                f"{path}: neighbor_cell_index and parent_cell_index do not have the {len(lon)} cells "
                "of clon"
            )
        if neighbours.max() > len(lon):
            raise DataError(
                f"{path}: neighbor_cell_index names cell {neighbours.max()} of {len(lon)}; is the "
                "file cut out of a larger one?"
            )
        root, level = (getattr(file, f"grid_{name}", None) for name in ("root", "level"))
        return IconGrid(
            path=path,
            lon_N=lon,
            lat_N=lat,
            area_N=np.asarray(file["cell_area"][:], dtype=np.float64),
            neighbours_N3=np.maximum(neighbours - 1, -1),
            parent_N=np.maximum(parent, -1),
            uuid=getattr(file, "uuidOfHGrid", None),
            parent_uuid=getattr(file, "uuidOfParHGrid", None),
            name="" if level is None else f"R{int(root or 2)}B{int(level):02d}",
            elevation_N=_first(file, ELEVATIONS, len(lon)),
            land_N=_land(file, len(lon)),
        )


class NetcdfFields:
    """Output files of one run on one grid, in order of time.

    Raises `DataError` if one is on another grid, lacks a variable, or does not follow those before in time.
    """

    def __init__(self, paths: Sequence[Path], variables: tuple[str, ...], grid: IconGrid) -> None:
        self.variables, self._grid = variables, grid
        found, units = [], []
        for path in paths:
            with opened(path) as file:
                if not any(name in file.variables for name in variables):
                    continue  # constants, or other fields
                for name in variables:
                    _check_variable(path, file, name, len(grid.lon_N))
                _check_grid(path, file, grid)
                time, kind = read_time(path, file)
                found.append((time, path, kind))
                units = [str(getattr(file[name], "units", "")) for name in variables]
        if not found:
            raise DataError(
                f"{grid.path.parent}: none of the {len(paths)} output files has {variables[0]!r}"
            )
        self.units = tuple(units)
        found.sort(key=lambda part: part[0][0])
        for (before, first, kind), (after, second, other) in itertools.pairwise(found):
            if other != kind:
                raise DataError(
                    f"{second}: its time is {other}, that of {first.name} is {kind}; write all files with "
                    "one kind of time axis"
                )
            if after[0] <= before[-1]:
                raise DataError(
                    f"{second}: begins before {first.name} ends; remove the file that covers the time twice"
                )
        self.time_T = np.concatenate([time for time, *_ in found])
        self._files = [(path, len(time)) for time, path, _ in found]

    def slabs(self, steps: int) -> Iterator[NDArray[np.float32]]:
        """Fields of at most ``steps`` output times after each other, [T, N, V]; never over two files."""
        for path, count in self._files:
            with opened(path) as file:
                for start in range(0, count, steps):
                    yield self._read(path, file, slice(start, min(start + steps, count)))

    def _read(self, path: Path, file: Any, span: slice) -> NDArray[np.float32]:
        shape = (span.stop - span.start, len(self._grid.lon_N), len(self.variables))
        values = np.empty(shape, "f4")
        for column, name in enumerate(self.variables):
            part = file[name][span]
            values[..., column] = np.ma.filled(part.astype("f4"), np.nan).reshape(shape[:2])
            missing = ~np.isfinite(values[..., column])
            if missing.any():
                step, cell = np.argwhere(missing)[0]
                raise DataError(
                    f"{path}: {name} has {missing.sum()} missing or infinite values, the first at time "
                    f"{span.start + step}, cell {cell + 1}; fill or leave out those times"
                )
        return values


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a NetCDF file of any format; `DataError` if it is truncated or damaged."""
    try:
        with netCDF4.Dataset(path) as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path}: truncated or damaged NetCDF ({first_line(error)}); transfer or make it again"
        ) from error


def read_time(path: Path, file: Any) -> tuple[Floats, str]:
    """Times of a file in days since 1970, and whether they are ``relative`` or ``absolute``.

    Raises `DataError` if there is no time, its units are unknown, or it does not increase.
    """
    if "time" not in file.variables:
        raise DataError(f"{path}: no variable 'time'")
    units = str(getattr(file["time"], "units", ""))
    values = np.asarray(file["time"][:], dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise DataError(f"{path}: its time is empty or has missing values")
    if units.startswith("day as"):
        kind, days = "absolute", _absolute_days(path, values, units)
    else:
        calendar = getattr(file["time"], "calendar", "standard")
        try:
            dates = cftime.num2date(values, units, calendar)
            kind, days = "relative", np.asarray(cftime.date2num(dates, EPOCH, calendar), "f8")
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


def _grid_of_output(grids: Sequence[IconGrid], path: Path) -> IconGrid:
    """The grid that an output file is on, by name or by its cells."""
    with opened(path) as file:
        uuid = getattr(file, "uuidOfHGrid", None)
        named = [grid for grid in grids if uuid is not None and grid.uuid == uuid]
        for grid in named or grids:
            if named or _has_centres(file, grid):
                return grid
    raise DataError(
        f"{path}: uuidOfHGrid {uuid} is that of none of the grid files "
        f"({', '.join(grid.path.name for grid in grids)}), and no grid has its cells; add its grid file"
    )


def _check_grid(path: Path, file: Any, grid: IconGrid) -> None:
    uuid = getattr(file, "uuidOfHGrid", None)
    if (uuid is None or uuid != grid.uuid) and not _has_centres(file, grid):
        raise DataError(
            f"{path}: uuidOfHGrid {uuid} is not that of {grid.path.name} ({grid.uuid}), and the centres of "
            "the cells do not agree either; all output files must be on one grid"
        )


def _has_centres(file: Any, grid: IconGrid) -> bool:
    """Whether a file gives the cells of a grid in its order, by centre."""
    names = next((n for n in (("clon", "clat"), ("lon", "lat")) if n[0] in file.variables), None)
    if names is None or file[names[0]].shape != grid.lon_N.shape:
        return False
    centres = unit_vectors(*(_radians(file[name]) for name in names))
    return bool(np.linalg.norm(centres - grid.centres_N3, axis=1).max() < NEAR)


def _chain(finest: IconGrid, grids: Sequence[IconGrid], levels: int) -> tuple[IconGrid, ...]:
    """The finest grid and its ancestors, as many as are needed to go back ``levels`` refinements."""
    chain = [finest]
    for _ in range(levels - 1):
        child = chain[-1]
        size, name = int(child.parent_N.max()) + 1, child.parent_uuid
        parents = [
            grid
            for grid in grids
            if grid not in chain
            and (len(grid.lon_N) == size if name is None else grid.uuid == name)
        ]
        if len(parents) != 1 or len(parents[0].lon_N) < size:
            wanted = f"uuidOfHGrid {name}" if name else f"{size} cells"
            raise DataError(
                f"{child.path}: the grid that it refines ({wanted}) is not among the grid files, and "
                f"levels = {levels} needs {levels} grids in a chain; add it or lower levels"
            )
        chain.append(parents[0])
    for grid in chain:
        if grid.parent_N.min() < 0:
            raise DataError(
                f"{grid.path}: parent_cell_index is missing for {(grid.parent_N < 0).sum()} cells; lower "
                "levels, or take a grid file with its parents"
            )
    return tuple(chain)


def _check_variable(path: Path, file: Any, name: str, n_cells: int) -> None:
    if name not in file.variables:
        known = [n for n, v in file.variables.items() if v.ndim > 1]
        raise DataError(f"{path}: no variable {name!r}; it has {', '.join(known) or 'no fields'}")
    dimensions, shape = file[name].dimensions, file[name].shape
    if dimensions[0] != "time" or dimensions[-1] not in CELL_DIMENSIONS:
        raise DataError(
            f"{path}: {name} has dimensions {', '.join(dimensions)}; expected time first and one of "
            f"{', '.join(CELL_DIMENSIONS)} last"
        )
    if any(size != 1 for size in shape[1:-1]):
        raise DataError(
            f"{path}: {name} has {max(shape[1:-1])} levels; cut out the one to use, fields are 2-D"
        )
    if shape[-1] != n_cells:
        raise DataError(f"{path}: {name} has {shape[-1]} cells, the grid of the output {n_cells}")


def _radians(variable: Any) -> Floats:
    values = np.asarray(variable[:], dtype=np.float64)
    units = str(getattr(variable, "units", "")).lower()
    # Without units, what exceeds a full turn cannot be radians.
    degrees = units.startswith("deg") or (not units and np.abs(values).max() > 2 * np.pi + 0.01)
    return np.deg2rad(values) if degrees else values


def _first(file: Any, names: Sequence[str], n_cells: int) -> Floats | None:
    """The first of some variables that is there with one value a cell."""
    for name in names:
        if name in file.variables and file[name].size == n_cells:
            return np.asarray(file[name][:], dtype=np.float64).reshape(-1)
    return None


def _land(file: Any, n_cells: int) -> Floats | None:
    mask = _first(file, ("cell_sea_land_mask",), n_cells)
    if mask is not None:
        return (mask > 0).astype(np.float64)  # 1: at the coast, 2: inland; negative: sea
    share = _first(file, LAND_SHARES, n_cells)
    return None if share is None else share / (100 if share.max() > 1.5 else 1)
