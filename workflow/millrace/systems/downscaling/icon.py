"""Grids and output of the ICON model: NetCDF files as they come, or small cases as CSV.

A source is a directory. NetCDF files with ``parent_cell_index`` are grids (the one of the fields and
those it was refined from), all others hold fields; see `open_source`. Of the fields only what is asked
for is read, some steps at a time.

Shape suffixes: N cells, T time steps, V variables.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from millrace.data.account import Account
from millrace.data.csv_lines import read_rows
from millrace.data.units import converted
from millrace.errors import DataError
from millrace.input_files import files_below, is_there
from millrace.systems.downscaling.icon_csv import ROWS, open_csv
from millrace.systems.downscaling.icon_output import (
    CELL_DIMENSIONS,
    NetcdfFields,
    angles_of,
    centres_of,
    is_on_cells,
    opened,
    order_of,
    whole,
)
from millrace.systems.downscaling.icon_source import Floats, IconGrid, IconSource

ELEVATIONS = ("cell_elevation", "topography_c", "orog", "z_surface")
LAND_SHARES = ("fr_land", "FR_LAND", "sftlf", "land_sea_mask")


def open_source(
    directory: Path,
    variables: Sequence[str],
    levels: int,
    account: Account | None = None,
    lazily: bool = False,
) -> IconSource:
    """Open a directory of ICON files, searched with all folders below it.

    With a ``grid.csv`` it is read as CSV, see `millrace.systems.downscaling.icon_csv`. Each of
    ``variables`` is taken from the files that hold it on cells; what else is there (constants, edges,
    restarts, output on longitudes and latitudes) is left alone. The source needs the grid of the fields and
    ``levels`` - 1 ancestors of it. Files are counted in ``account``. With ``lazily`` cells of output files
    are looked up when these are read, and CSV is not read at all, which spares the files of other parts.
    Raises `DataError` if files are missing, damaged, or do not fit each other.
    """
    directory, account = Path(directory), account or Account()
    if is_there(directory / "grid.csv"):
        return open_csv(directory, variables, levels, account, lazily)
    paths = files_below(directory, "*.nc")
    if not paths:
        raise DataError(f"{directory}: no NetCDF file (*.nc) and no grid.csv in it")
    grids: list[Path] = []
    outputs: list[Path] = []
    others: list[Path] = []
    for path in paths:
        with opened(path) as file:
            if "parent_cell_index" in file.variables:
                grids.append(path)
            elif any(is_on_cells(file, name) for name in variables):
                outputs.append(path)
            else:
                others.append(path)
    if not grids or not outputs + others:
        what = "grid file (one with parent_cell_index)" if not grids else "output file"
        raise DataError(f"{directory}: no {what} among its {len(paths)} NetCDF files")
    known = [read_grid(path) for path in grids]
    for path in others:
        _check_other(path, variables, {len(grid.lon_N) for grid in known})
    if not outputs:
        raise DataError(
            f"{directory}: none of the {len(paths) - len(grids)} output files has {variables[0]!r}; "
            "expected it on cells"
        )
    chain = _chain(_grid_of_output(known, outputs[0]), known, levels)
    account.keep("files", len(chain) + len(outputs))
    account.leave_out("files", f"without {' or '.join(variables)} on cells", len(others))
    account.leave_out("files", "grids that are not needed", len(grids) - len(chain))
    return IconSource(chain, NetcdfFields(outputs, tuple(variables), chain[0], lazily))


def cells_of(directory: Path, variables: Sequence[str]) -> int:
    """Number of cells that fields of a directory are on, by the header of one file.

    Raises `DataError` if no file has one of ``variables``.
    """
    if is_there(directory / "grid.csv"):
        return sum(map(len, read_rows(directory / "grid.csv", (), ROWS)))
    for path in files_below(directory, "*.nc"):
        with opened(path) as file:
            for name in variables:
                if is_on_cells(file, name):
                    [size] = {*CELL_DIMENSIONS} & {*file[name].dimensions}
                    return len(file.dimensions[size])
    raise DataError(f"{directory}: no file has {' or '.join(variables)} on cells")


def _check_other(path: Path, variables: Sequence[str], sizes: set[int]) -> None:
    """Refuse a file that has a field on all cells of a grid, but not by the name of its dimension."""
    with opened(path) as file:
        for name in variables:
            if name in file.variables and sizes & {*file[name].shape}:
                raise DataError(
                    f"{path}: {name} has dimensions {', '.join(file[name].dimensions)}; expected "
                    f"time and one of {', '.join(CELL_DIMENSIONS)}"
                )


def inspect(directory: Path) -> dict[str, Any]:
    """Tell what a new project needs to know of a directory: ``variables`` and ``levels``.

    The variables are the two-dimensional fields of all output files. Levels are refinements between a block
    and its cells: at most four, and as many as there are grid files. Raises `DataError` for a damaged file.
    """
    grids, variables = 0, dict[str, None]()
    for path in files_below(directory, "*.nc"):
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
        lon, lat = angles_of(path, file, ("clon", "clat"))
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
        root, level = (getattr(file, f"grid_{name}", None) for name in ("root", "level"))
        grid = IconGrid(
            path=path,
            lon_N=lon,
            lat_N=lat,
            area_N=whole(file["cell_area"]),
            neighbours_N3=np.maximum(neighbours - 1, -1),
            parent_N=np.maximum(parent, -1),
            uuid=getattr(file, "uuidOfHGrid", None),
            parent_uuid=getattr(file, "uuidOfParHGrid", None),
            name="" if level is None else f"R{int(root or 2)}B{int(level):02d}",
            elevation_N=_first(path, file, ELEVATIONS, "m", len(lon)),
            land_N=_land(path, file, len(lon)),
        )
    grid.check()
    return grid


def _grid_of_output(grids: Sequence[IconGrid], path: Path) -> IconGrid:
    """The grid that an output file is on, by its cells or, where it does not tell them, by name."""
    with opened(path) as file:
        uuid, centres_N3 = getattr(file, "uuidOfHGrid", None), centres_of(path, file)
        sizes = {len(file.dimensions[name]) for name in CELL_DIMENSIONS if name in file.dimensions}
    for grid in grids:
        if centres_N3 is not None and order_of(centres_N3, grid) is not None:
            return grid
    for grid in grids:
        if uuid is not None and grid.uuid == uuid and len(grid.lon_N) in sizes:
            return grid
    raise DataError(
        f"{path}: uuidOfHGrid {uuid} is that of none of the grid files "
        f"({', '.join(grid.path.name for grid in grids)}), and no grid has its cells; add its grid file"
    )


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
            found = "is not" if len(parents) < 2 else f"is {len(parents)} times"
            raise DataError(
                f"{child.path}: the grid that it refines ({wanted}) {found} among the grid files, and "
                f"levels = {levels} needs {levels} grids in a chain; give it once, or lower levels"
            )
        chain.append(parents[0])
    for grid in chain:
        if grid.parent_N.min() < 0:
            raise DataError(
                f"{grid.path}: parent_cell_index is missing for {(grid.parent_N < 0).sum()} cells; lower "
                "levels, or take a grid file with its parents"
            )
    return tuple(chain)


def _first(
    path: Path, file: Any, names: Sequence[str], unit: str | None, n_cells: int
) -> Floats | None:
    """The first of some variables that is there with one value a cell, in a unit; None: in its own."""
    for name in names:
        if name in file.variables and file[name].size == n_cells:
            own = str(getattr(file[name], "units", "")).strip() or None
            return np.asarray(converted(whole(file[name]), own, unit, f"{path}: {name}"))
    return None


def _land(path: Path, file: Any, n_cells: int) -> Floats | None:
    mask = _first(path, file, ("cell_sea_land_mask",), None, n_cells)
    if mask is not None:
        # 1: at the coast, 2: inland; negative: sea
        return np.where(np.isnan(mask), np.nan, (mask > 0).astype(np.float64))
    share = _first(path, file, LAND_SHARES, None, n_cells)
    return None if share is None else share / (100 if share.max() > 1.5 else 1)
