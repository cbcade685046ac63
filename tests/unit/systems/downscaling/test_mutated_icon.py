"""ICON run folders with one mutation each: read as by label, or refused with their place.

Mutations are those of real folders: cells in another order, centres that contradict the grid, other
units, no-data values, files divided otherwise, files beside. What is read is compared with the clean
fields at the same place and time, and its times with those that xarray or pandas find. Left out is what
nobody can tell: values or numbers of cells exchanged where no centre is beside them.
"""

import copy
import re
import shutil
from dataclasses import dataclass, field

import cftime
import h5py
import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from mutations import NUMBER, try_mutations
from scipy.spatial import cKDTree

from millrace.data.split import SplitConfig
from millrace.errors import DataError
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.simulator.icosphere import Icosphere, lonlat, unit_vectors

CELLS, BLOCKS, TIMES = 1280, 80, 6
CONFIG = BlockConfig(variables=("tas", "psl"), levels=2)
SPLIT = SplitConfig(train=0.4, validation=0.3)
SI = {"K": (1, 0), "degC": (1, 273.15), "degrees_C": (1, 273.15), "Pa": (1, 0), "hPa": (100, 0)}
SI |= {"mb": (100, 0), "": (1, 0)}
NO_DATA = (-999.0, -9999.0, 1e20, 1e30, 9.96921e36, -99999.0, 1e36)


@dataclass
class Grid:
    """A grid file."""

    uuid: str
    parent_uuid: str
    columns: dict
    units: dict = field(default_factory=lambda: {"clon": "radian", "clat": "radian"})
    transposed: bool = False
    format: str = "NETCDF4"


@dataclass
class Output:
    """An output file: fields [T, N] with units, and how they are written."""

    hours: np.ndarray
    lon: np.ndarray | None
    lat: np.ndarray | None
    uuid: str | None
    fields: dict
    units: dict
    attributes: dict = field(default_factory=dict)
    dimension: str = "ncells"
    order: tuple = ("time", "height", "cell")
    angle: str | None = "radian"
    time: str = "hours since 2020-01-01"
    format: str = "NETCDF4"


def write_grid(path, grid):
    with netCDF4.Dataset(path, "w", format=grid.format) as file:
        file.createDimension("cell", len(grid.columns["clon"]))
        file.createDimension("nv", 3)
        for name, values in grid.columns.items():
            dimensions = ("cell",)
            if values.ndim == 2:
                dimensions = ("cell", "nv") if grid.transposed else ("nv", "cell")
                values = values if grid.transposed else values.T
            kind = "i4" if "index" in name or "mask" in name else "f8"
            file.createVariable(name, kind, dimensions)[:] = values
            if name in grid.units:
                file[name].units = grid.units[name]
        file.uuidOfHGrid, file.uuidOfParHGrid = grid.uuid, grid.parent_uuid


def write_output(path, one):
    with netCDF4.Dataset(path, "w", format=one.format) as file:
        sizes = {"time": None, "height": 1, one.dimension: CELLS}
        for name, size in sizes.items():
            file.createDimension(name, size)
        scalar = "time" not in one.order
        time = file.createVariable("time", "f8", () if scalar else ("time",))
        time.units = one.time
        values = one.hours.astype(float)
        if one.time.startswith("day as"):
            values = np.array([20200101 + h // 24 + h % 24 / 24 for h in one.hours])
        elif one.time.startswith("minutes"):
            values = 60 * values + 24 * 60
        time[...] = values[0] if scalar else values
        if one.lon is not None:
            for name, angle in (("clon", one.lon), ("clat", one.lat)):
                variable = file.createVariable(name, "f8", (one.dimension,))
                variable[:] = angle
                if one.angle:
                    variable.units = one.angle
        for name, field_TN in one.fields.items():
            whole = field_TN[:, None]
            axes = ("time", "height", "cell")
            if scalar:
                whole, axes = whole[0], axes[1:]
            whole = whole.squeeze(axes.index("height")) if "height" not in one.order else whole
            axes = tuple(axis for axis in axes if axis in one.order)
            whole = whole.transpose([axes.index(axis) for axis in one.order])
            dimensions = tuple(one.dimension if axis == "cell" else axis for axis in one.order)
            variable = file.createVariable(name, "f4", dimensions, fill_value=None)
            attributes = dict(one.attributes.get(name, {}))
            if name in one.units:
                attributes["units"] = one.units[name]
            variable.setncatts(attributes)
            variable[...] = whole
        if one.uuid:
            file.uuidOfHGrid = one.uuid


@dataclass
class Run:
    """A folder: grid and output files by name, and others that are written by functions."""

    grids: dict
    outputs: dict
    others: dict = field(default_factory=dict)
    cut: tuple | None = None

    def write(self, base):
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        for name, grid in self.grids.items():
            write_grid(base / name, grid)
        for name, one in self.outputs.items():
            write_output(base / name, one)
        for name, make in self.others.items():
            make(base / name)
        if self.cut:
            content = (base / self.cut[0]).read_bytes()
            (base / self.cut[0]).write_bytes(content[: int(self.cut[1] * len(content))])


def clean_run():
    source, grids = np.random.default_rng(0), {}
    for level in range(3):
        grid = Icosphere.build(level)
        lon, lat = lonlat(grid.centres_N3)
        columns = {
            "clon": lon,
            "clat": lat,
            "cell_area": grid.area_N * 6.371e6**2,
            "neighbor_cell_index": grid.neighbours_N3 + 1,
            "parent_cell_index": grid.parent_N + 1,
        }
        if level == 2:
            height = 1500 * np.maximum(0, np.sin(3 * lon) + np.sin(4 * lat))
            columns |= {"cell_elevation": height, "cell_sea_land_mask": np.where(height > 0, 2, -2)}
        units = {"clon": "radian", "clat": "radian", "cell_area": "m2", "cell_elevation": "m"}
        grids[f"grid_{level}.nc"] = Grid(f"uuid-{level}", f"uuid-{level - 1}", columns, units)
    hours = 6 * np.arange(TIMES)
    tas = 285 - 30 * np.sin(lat) ** 2 + source.standard_normal((TIMES, CELLS))
    psl = 101325 + 800 * np.sin(2 * lon + hours[:, None] / 9) + source.standard_normal(tas.shape)
    fields = {"tas": tas.astype("f4"), "psl": psl.astype("f4")}
    outputs = {}
    for number, part in enumerate((slice(0, 3), slice(3, 6))):
        here = {name: values[part].copy() for name, values in fields.items()}
        units = {"tas": "K", "psl": "Pa"}
        outputs[f"run_{number}.nc"] = Output(hours[part], lon, lat, "uuid-2", here, units)
    return Run(grids, outputs)


# Mutations of folders: each changes a run, and says which file a refusal must name, if that is certain.


def some_output(run, draw):
    return draw.choice(list(run.outputs))


def cells_in_another_order(run, draw):
    one = run.outputs[some_output(run, draw)]
    how = draw.choice(["permuted", "rolled", "flipped"])
    order = {
        "permuted": np.array(draw.sample(range(CELLS), CELLS)),
        "rolled": np.roll(np.arange(CELLS), draw.randrange(1, CELLS)),
        "flipped": np.arange(CELLS)[::-1],
    }[how]
    one.lon, one.lat = one.lon[order], one.lat[order]
    one.fields = {name: values[:, order] for name, values in one.fields.items()}
    if draw.random() < 0.3:
        one.uuid = None


def centres_of_other_cells(run, draw):
    name = some_output(run, draw)
    one = run.outputs[name]
    if draw.random() < 0.5:
        one.lon, one.lat = (one.lon + draw.choice([0.003, 0.5])), one.lat
    else:
        cells = draw.sample(range(CELLS), draw.choice([1, 20]))
        one.lat = one.lat.copy()
        one.lat[cells] = np.clip(one.lat[cells] + draw.choice([0.02, -0.3, np.nan]), -1.5, 1.5)
    one.uuid = draw.choice([one.uuid, "uuid-1", None])
    return name


def renumbered_grid(run, draw):
    """Another numbering of the cells, and of the files without centres none that could be told."""
    grid = run.grids["grid_2.nc"]
    new = np.array(draw.sample(range(CELLS), CELLS))
    old = np.argsort(new)
    grid.columns = {name: values[old] for name, values in grid.columns.items()}
    grid.columns["neighbor_cell_index"] = new[grid.columns["neighbor_cell_index"] - 1] + 1


def contradicting_grid(run, draw):
    columns = run.grids["grid_2.nc"].columns
    name = draw.choice([*columns][:-2])
    if name in ("clon", "clat") or draw.random() < 0.5:
        both = ["clon", "clat"] if name in ("clon", "clat") else [name]
        if name == "cell_area":  # exchanged ones are alike
            scale = draw.choice([-1, 0, 1e-3, 10])
            columns[name] = columns[name] * np.where(np.arange(CELLS) == 5, scale, 1)
        else:
            shift = draw.randrange(1, 256)  # a fifth of the cells turns the grid into itself
            for one in both:
                columns[one] = np.roll(columns[one], shift, axis=0)
            for one in run.outputs.values():
                one.lon = one.lat = None
    else:
        values = columns[name] = columns[name].copy()
        cell = draw.randrange(CELLS)
        wrong = [0, -1, 10**6] + ([] if name == "cell_area" else [values[cell - 640]])
        values[cell] = draw.choice(wrong)
    return "grid"


def other_angles(run, draw):
    """Degrees for radians, with the unit or without; or said to be what they are not."""
    name = draw.choice([*run.outputs, "grid_2.nc"])
    said = draw.choice(["degrees", "degree", None, "degrees_east", "rad", "wrong"])
    scale = 1 if said in ("rad", "wrong") else 180 / np.pi
    said = draw.choice(["degrees", "m"]) if said == "wrong" else said
    if name.startswith("grid"):
        grid = run.grids[name]
        for axis in ("clon", "clat"):
            grid.columns[axis] = grid.columns[axis] * scale
            grid.units.pop(axis)
            if said:
                grid.units[axis] = said
        if draw.random() < 0.3:
            for one in run.outputs.values():
                one.lon = one.lat = None
    else:
        one = run.outputs[name]
        one.lon, one.lat, one.angle = one.lon * scale, one.lat * scale, said
    return None


def other_units(run, draw):
    """Values in another unit: with the attribute, without it, or with a wrong one; in some files."""
    names = draw.choice([[some_output(run, draw)], list(run.outputs)])
    name = draw.choice(["tas", "psl"])
    unit = draw.choice({"tas": ["degC", "degrees_C"], "psl": ["hPa", "mb"]}[name])
    factor, offset = SI[unit]
    said = draw.choice([unit, unit, None, "kept", "m s-1"])
    first = draw.choice([0, 1]) if said == "kept" else 0
    for one in (run.outputs[name] for name in names):
        values = one.fields[name].astype(float)
        values[first:] = (values[first:] - offset) / factor
        one.fields[name] = values.astype("f4")
        if said is None:
            one.units.pop(name)
        elif said != "kept":
            one.units[name] = said


def without_units(run, draw):
    for name in draw.choice([[some_output(run, draw)], list(run.outputs)]):
        run.outputs[name].units.pop(draw.choice(["tas", "psl"]))


def no_data(run, draw):
    """Undeclared, or declared by one of the attributes of CF."""
    name, value = some_output(run, draw), draw.choice(NO_DATA)
    one, variable = run.outputs[name], draw.choice(["tas", "psl"])
    values = one.fields[variable]
    times = draw.choice([[0], [2], range(3)])
    for time in times:
        values[time, draw.sample(range(CELLS), draw.choice([1, 3, 200]))] = value
    if draw.random() < 0.4:
        one.attributes[variable] = {"missing_value": np.float32(value)}
    return name


def no_data_in_the_grid(run, draw):
    columns = run.grids["grid_2.nc"].columns
    name = draw.choice(["clon", "clat", "cell_area", "cell_elevation"])
    columns[name] = columns[name].copy()
    cells = draw.sample(range(CELLS), draw.choice([1, 3, 200]))
    columns[name][cells] = draw.choice([*NO_DATA, np.nan])
    return "grid_2.nc"


def other_height(run, draw):
    grid = run.grids["grid_2.nc"]
    grid.columns["cell_elevation"] = grid.columns["cell_elevation"] / 1000
    grid.units["cell_elevation"] = "km"


def renamed(run, draw):
    one = run.outputs[some_output(run, draw)]
    name = draw.choice(["tas", "psl"])
    new = draw.choice([name.upper(), "t_2m", "temp", f"{name}_2"])
    one.fields = {new if key == name else key: values for key, values in one.fields.items()}
    one.units[new] = one.units[name]


def divided_by_time(run, draw):
    outputs = {}
    for name, one in run.outputs.items():
        for t, hour in enumerate(one.hours):
            part = copy.copy(one)
            part.hours = one.hours[t : t + 1]
            part.fields = {key: values[t : t + 1] for key, values in one.fields.items()}
            if draw.random() < 0.3:
                part.order = draw.choice([("cell",), ("height", "cell")])
            outputs[f"{draw.randrange(100):02d}_{hour}_{name}"] = part
    run.outputs = outputs


def divided_by_variable(run, draw):
    outputs = {}
    for name, one in run.outputs.items():
        for key in one.fields:
            part = copy.copy(one)
            part.fields = {key: one.fields[key]}
            outputs[f"{key}_{name}"] = part
    run.outputs = outputs
    if draw.random() < 0.3:
        del outputs[draw.choice(list(outputs))]


def joined(run, draw):
    first, second = run.outputs.values()
    first.fields = {n: np.concatenate([v, second.fields[n]]) for n, v in first.fields.items()}
    first.hours = np.concatenate([first.hours, second.hours])
    del run.outputs["run_1.nc"]


def times_doubled(run, draw):
    one = run.outputs[name := some_output(run, draw)]
    if draw.random() < 0.5:
        run.outputs["again.nc"] = copy.copy(one)
        return None
    again = [0, draw.choice([0, 1]), 1, 2]
    again.sort()
    one.hours = one.hours[again]
    one.fields = {key: values[again] for key, values in one.fields.items()}
    return name


def times_cut(run, draw):
    one = run.outputs[some_output(run, draw)]
    kept = draw.choice([slice(0, 2), slice(1, 3), slice(0, 1)])
    one.hours = one.hours[kept]
    one.fields = {key: values[kept] for key, values in one.fields.items()}


def times_flipped(run, draw):
    one = run.outputs[some_output(run, draw)]
    shift = draw.choice([None, 1])
    for_all = (lambda v: v[::-1]) if shift is None else (lambda v: np.roll(v, 1, axis=0))
    one.hours = for_all(one.hours)
    one.fields = {key: for_all(values) for key, values in one.fields.items()}


def other_times(run, draw):
    units = draw.choice(["day as %Y%m%d.%f", "minutes since 2019-12-31 00:00", "fortnights"])
    for name in draw.choice([[some_output(run, draw)], list(run.outputs)]):
        run.outputs[name].time = units


def other_axes(run, draw):
    for name in draw.choice([[some_output(run, draw)], list(run.outputs)]):
        run.outputs[name].order = draw.choice(
            [
                ("time", "cell"),
                ("cell", "time"),
                ("height", "time", "cell"),
                ("cell", "height", "time"),
            ]
        )
        run.outputs[name].dimension = draw.choice(["ncells", "cell", "i", "points"])
    if draw.random() < 0.3:
        run.grids["grid_2.nc"].transposed = True


def without_centres(run, draw):
    one = run.outputs[name := some_output(run, draw)]
    one.lon = one.lat = None
    one.uuid = draw.choice(["uuid-2", "uuid-1", None])
    return name if one.uuid != "uuid-2" else None


def write_variables(path, sizes, **variables):
    with netCDF4.Dataset(path, "w") as file:
        for name, size in sizes.items():
            file.createDimension(name, size)
        for name, dimensions in variables.items():
            shape = [sizes[one] for one in dimensions]
            file.createVariable(name, "f4", dimensions)[:] = np.full(shape, 280.0)


def others_beside(run, draw):
    kinds = {
        "extpar.nc": lambda p: write_variables(p, {"cell": CELLS}, topography_c=("cell",)),
        "latlon.nc": lambda p: write_variables(
            p, {"time": 2, "lat": 4, "lon": 8}, time=("time",), tas=("time", "lat", "lon")
        ),
        "edges.nc": lambda p: write_variables(p, {"time": 2, "edge": 9}, vn=("time", "edge")),
        "restart.nc": lambda p: write_variables(p, {"cells": CELLS, "z": 3}, rho=("z", "cells")),
        "constants.nc": lambda p: write_variables(p, {"ncells": CELLS}, tas=("ncells",)),
        "levels.nc": lambda p: write_variables(
            p, {"time": 1, "z": 3, "ncells": CELLS}, time=("time",), tas=("time", "z", "ncells")
        ),
        "coarse.nc": lambda p: write_variables(
            p, {"time": 1, "ncells": 320}, time=("time",), psl=("time", "ncells")
        ),
        "text.nc": lambda p: p.write_text("<html>not found</html>"),
        "empty.nc": lambda p: p.write_text(""),
        "a.grb": lambda p: p.write_bytes(b"GRIB"),
    }
    for name in draw.sample(list(kinds), draw.choice([1, 1, 3])):
        run.others[draw.choice(["a", "z"]) + name] = kinds[name]


def missing_grid(run, draw):
    name = draw.choice(list(run.grids))
    if draw.random() < 0.5:
        run.grids[f"again_{name}"] = run.grids[name]
    else:
        del run.grids[name]


def cut_off(run, draw):
    name = draw.choice([*run.outputs, "grid_2.nc"])
    place = run.grids[name] if name in run.grids else run.outputs[name]
    place.format = draw.choice(["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET"])
    run.cut = name, draw.choice([0.5, 0.9, 0.98])
    return name


def other_format(run, draw):
    for one in run.outputs.values():
        one.format = draw.choice(["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF4_CLASSIC"])


FOLDERS = [
    cells_in_another_order, centres_of_other_cells, renumbered_grid, contradicting_grid, other_angles,
    other_units, other_units, without_units, no_data, no_data, no_data_in_the_grid, other_height, renamed,
    divided_by_time, divided_by_variable, joined, times_doubled, times_cut, times_flipped, other_times,
    other_axes, without_centres, others_beside, others_beside, missing_grid, cut_off, other_format,
]  # fmt: skip


def hours_by_xarray(base):
    """Hours since 2020 of the files that have fields on all cells."""
    hours = set()
    for path in base.glob("*.nc"):
        try:
            with xr.open_dataset(path, decode_times=False) as file:
                named = [n for n in ("tas", "psl") if n in file and CELLS in file[n].shape]
                if not named or "units" not in file["time"].attrs:
                    continue
                values, units = np.atleast_1d(file["time"].values), file["time"].attrs["units"]
        except (OSError, ValueError):
            continue
        if units.startswith("day as"):
            hours |= {round((v % 1 + v // 1 - 20200101) * 24) for v in values}
        else:
            found = cftime.num2date(values, units)
            hours |= {round(cftime.date2num(one, "hours since 2020-01-01")) for one in found}
    return sorted(hours)


def blocks_of(base):
    """Samples of a folder by variable: hours, and what belongs to each cell, where it is."""
    output = base.parent / "blocks.h5"
    output.unlink(missing_ok=True)
    extract_blocks(base, output, CONFIG, SPLIT)
    with h5py.File(output) as file:
        found = {name: file[name][()] for name in ("fine", "coarse", "time")}
        found |= {name: file["geometry"][name][()] for name in file["geometry"]}
        found["neighbours"] = file["neighbours/0"][()]
        units = list(file.attrs["units"])
    for column, unit in enumerate(units):
        for name in ("fine", "coarse"):
            found[name][..., column] = found[name][..., column] * SI[unit][0] + SI[unit][1]
    found["hours"] = np.round(found.pop("time") * 24 - 18262 * 24).astype(int)
    return found


def difference(found, clean, hours, exact_area=True):
    """What differs from the clean fields at the same places and times, None if nothing does."""
    if found["hours"].tolist() != list(hours):
        return f"hours {found['hours'].tolist()} instead of {hours}"
    if not set(hours) <= set(clean["hours"]):
        return f"hours {hours} are not those of the run"
    distance, cell = cKDTree(clean["centre"]).query(found["centre"])
    if distance.max() > 1e-5 or len(np.unique(cell)) < CELLS:
        return "other cells"
    step = np.searchsorted(clean["hours"], hours)
    if not np.allclose(found["fine"], clean["fine"][step][:, cell], rtol=1e-6, atol=2e-4):
        return "other values"
    means = clean["coarse"].repeat(CELLS // BLOCKS, axis=1)[step][:, cell]
    if not np.allclose(
        found["coarse"].repeat(CELLS // BLOCKS, axis=1), means, rtol=1e-6, atol=2e-4
    ):
        return "other means of blocks"
    for name in ("area", "elevation", "land"):
        if not np.allclose(found[name], clean[name][cell], rtol=1e-6):
            return f"another {name}"
    own, other = (np.sort(one, axis=1) for one in (cell[found["neighbours"]], clean["neighbours"]))
    return None if np.array_equal(own, other[cell]) else "other neighbours"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    base = tmp_path_factory.mktemp("clean") / "raw"
    run = clean_run()
    run.write(base)
    found = blocks_of(base)
    grid = run.grids["grid_2.nc"].columns
    distance, cell = cKDTree(unit_vectors(grid["clon"], grid["clat"])).query(found["centre"])
    assert distance.max() < 1e-9
    for number, part in enumerate(np.split(found["fine"], 2)):
        with xr.open_dataset(base / f"run_{number}.nc", decode_times=False) as file:
            for column, name in enumerate(("tas", "psl")):
                assert np.array_equal(part[..., column], file[name][:, 0].values[:, cell])
    return found


def named_file(read):
    """Refusals must name a file, or the folder where none is to blame."""

    def reader():
        try:
            return read()
        except DataError as error:
            if not re.search(r"raw(/\S+\.(nc|csv)|: no )", str(error)):
                raise AssertionError(f"no file is named: {error}") from error
            raise

    return reader


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_run_folders_are_read_rightly_or_refused_with_their_file(clean, tmp_path):
    base, whole = tmp_path / "raw", clean_run()

    def write(mutation, draw):
        run = copy.deepcopy(whole)
        place = mutation(run, draw)
        run.write(base)
        return base / (place or "")

    def fault(found, mutation):
        return difference(found, clean, hours_by_xarray(base))

    refused = try_mutations(FOLDERS, write, named_file(lambda: blocks_of(base)), fault)
    assert NUMBER / 4 < refused < 0.9 * NUMBER


# The same as CSV.


def clean_tables():
    """Tables by the name of their file."""
    run = clean_run()
    fine, coarse = (run.grids[f"grid_{level}.nc"].columns for level in (2, 1))
    parent = fine["parent_cell_index"]
    columns = {"cell": np.arange(CELLS) + 1, "clon": fine["clon"], "clat": fine["clat"]}
    columns["cell_area"] = fine["cell_area"]
    columns |= {f"neighbor_{k + 1}": fine["neighbor_cell_index"][:, k] for k in range(3)}
    columns |= {"parent_1": parent, "parent_2": coarse["parent_cell_index"][parent - 1]}
    columns |= {"elevation": fine["cell_elevation"], "land": fine["cell_sea_land_mask"] > 0}
    tables = {"grid.csv": pd.DataFrame(columns).astype({"land": int})}
    for name, one in run.outputs.items():
        time = pd.Timestamp(2020, 1, 1) + pd.to_timedelta(one.hours.repeat(CELLS), "h")
        rows = {"time": time.strftime("%Y-%m-%dT%H:%M"), "cell": np.tile(columns["cell"], 3)}
        rows |= {axis: np.tile(columns[axis], 3) for axis in ("clon", "clat")}
        rows |= {key: values.reshape(-1) for key, values in one.fields.items()}
        tables[name.replace(".nc", ".csv")] = pd.DataFrame(rows)
    return tables


def some_table(tables, draw):
    return draw.choice(list(tables))


def fields_of(draw):
    return f"run_{draw.choice([0, 1])}.csv"


def shuffled_columns(tables, draw):
    name = some_table(tables, draw)
    columns = list(tables[name].columns)
    tables[name] = tables[name][draw.sample(columns, len(columns))]


def shuffled_rows(tables, draw):
    """Within each time, or at all; in the grid cells count the rows."""
    name = some_table(tables, draw)
    rows = tables[name].sample(frac=1, random_state=draw.randrange(10**6))
    if "time" in rows and draw.random() < 0.6:
        rows = rows.sort_values("time", kind="stable")
    tables[name] = rows


def renamed_columns(tables, draw):
    table = tables[name := some_table(tables, draw)]
    column = draw.choice(
        [c for c in table.columns if c not in ("clon", "clat", "elevation", "land")]
    )
    new = draw.choice([column.upper(), f" {column}", f"{column} (K)", "x"])
    tables[name] = table.rename(columns={column: new})


def rows_cut_or_doubled(tables, draw):
    table = tables[name := some_table(tables, draw)]
    row = draw.randrange(len(table))
    rows = draw.choice(
        [
            [*range(row + 1), *range(row, len(table))],
            [*range(row), *range(row + 1, len(table))],
            [*range(row), max(0, row - 1), *range(row + 1, len(table))],
            [*range(CELLS), *range(len(table))],
            [*range(len(table)), *range(CELLS)],
            [*range(CELLS, len(table))],
            [*range(len(table) - 1)],
        ]
    )
    tables[name] = table.iloc[rows]


def blank_cell(tables, draw):
    table = tables[name := some_table(tables, draw)].astype(object)
    row, column = draw.randrange(len(table)), draw.randrange(table.shape[1])
    table.iloc[row, column] = draw.choice(["", "NA", "?", " ", "nan", "inf", "1e400"])
    tables[name] = table


def no_data_in_tables(tables, draw):
    table = tables[name := some_table(tables, draw)]
    column = draw.choice([c for c in table if c not in ("time", "land")])
    table = table.astype({column: object})
    rows = draw.sample(range(len(table)), draw.choice([1, 3, 200]))
    table.iloc[rows, table.columns.get_loc(column)] = draw.choice(NO_DATA)
    tables[name] = table


def other_units_in_tables(tables, draw):
    names = [n for n in tables if n != "grid.csv"]
    column, change = draw.choice(
        [("tas", lambda v: v - 273.15), ("psl", lambda v: v / 100), ("psl", lambda v: v / 1000)]
    )
    first = draw.choice([0, CELLS])
    for name in draw.choice([names, names[:1], names[1:]]):
        values = tables[name][column].to_numpy(float)
        values[first:] = change(values[first:])
        tables[name] = tables[name].assign(**{column: values})


def other_angles_in_tables(tables, draw):
    for name in draw.choice([["grid.csv"], ["run_1.csv"], list(tables)]):
        table = tables[name]
        tables[name] = table.assign(clon=np.rad2deg(table["clon"]), clat=np.rad2deg(table["clat"]))


def other_centres(tables, draw):
    table = tables[name := some_table(tables, draw)]
    if draw.random() < 0.5:
        shift = draw.randrange(1, 256)
        changed = {axis: np.roll(table[axis], shift) for axis in ("clon", "clat")}
    else:
        changed = {"cell": table["cell"].to_numpy(copy=True)}
        rows = np.array(draw.sample(range(CELLS), 2))
        changed["cell"][rows] = changed["cell"][rows[::-1]]
    tables[name] = table.assign(**changed)


def contradicting_numbers(tables, draw):
    table = tables["grid.csv"]
    column = draw.choice(["neighbor_1", "neighbor_3", "parent_1", "parent_2", "cell_area"])
    values = table[column].astype(float).to_numpy(copy=True)
    row = draw.randrange(CELLS)
    wrong = [-1, 0, 0.5, 10**6, 10**12] + ([] if column == "cell_area" else [values[row - 640]])
    values[row] = draw.choice([-1, 0] if column == "cell_area" else wrong)
    tables["grid.csv"] = table.assign(**{column: values})


def other_times_in_tables(tables, draw):
    """Other ways to write times, and one that is another time in a single row or all rows."""
    name = fields_of(draw)
    times = pd.to_datetime(tables[name]["time"])
    how = draw.choice(
        ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%MZ", "%Y%m%dT%H%M", "%d.%m.%Y %H:%M", "row"]
    )
    text = times.dt.strftime("%Y-%m-%dT%H:%M" if how == "row" else how)
    if how == "row":
        text.iloc[draw.randrange(len(text))] = draw.choice(
            ["2020-01-01T07:00", "NaT", "1500-01-01"]
        )
    tables[name] = tables[name].assign(time=text)


def other_files(tables, draw):
    """Files by time in another order of names, by variable, all in one, or one of stations beside."""
    how = draw.choice(["by time", "by variable", "joined", "beside"])
    one, two = tables["run_0.csv"], tables["run_1.csv"]
    if how == "beside":
        tables["stations.csv"] = pd.DataFrame({"station": [1], "tas": [280.0]})
        return
    del tables["run_0.csv"], tables["run_1.csv"]
    if how == "joined":
        tables["all.csv"] = pd.concat([one, two])
    elif how == "by variable":
        for name in ("tas", "psl"):
            tables[f"{name}.csv"] = pd.concat([one, two]).drop(columns=name)
    else:
        for number, (_, rows) in enumerate(pd.concat([one, two]).groupby("time")):
            tables[f"{draw.choice('ab')}{number}.csv"] = rows


TABLES = [
    shuffled_columns, shuffled_rows, renamed_columns, rows_cut_or_doubled, rows_cut_or_doubled, blank_cell,
    no_data_in_tables, other_units_in_tables, other_angles_in_tables, other_centres, contradicting_numbers,
    other_times_in_tables, other_files,
]  # fmt: skip


def cut(text, draw):
    """Anywhere but at the end of a line, where nobody can tell."""
    return text[: draw.randrange(len(text) // 2, len(text))].removesuffix("\n")


def cell_more_or_less(text, draw):
    lines = text.split("\n")
    row = draw.randrange(1, len(lines) - 1)
    comma = lines[row].replace(".", ",", draw.choice([1, 9]))
    lines[row] = draw.choice([f"{lines[row]},1", lines[row].rpartition(",")[0], "", comma])
    return "\n".join(lines)


def other_dialect(text, draw):
    return draw.choice(
        [
            text.replace(",", ";"),
            text.replace(",", ";").replace(".", ","),
            text.replace(",", "\t"),
            text.replace("\n", "\r\n"),
            f"\ufeff{text}",
            text.replace("0", "\0", 1),
        ]
    )


TEXTS = [cut, cell_more_or_less, other_dialect]


def hours_by_pandas(base):
    paths = (path for path in base.glob("*.csv") if path.name != "grid.csv")
    tables = [pd.read_csv(path, usecols=lambda name: name.strip() == "time") for path in paths]
    text = pd.concat([table.iloc[:, 0] for table in tables])
    times = pd.to_datetime(text, format="ISO8601", utc=True).unique()
    return sorted(((times - pd.Timestamp(2020, 1, 1, tz="UTC")) / pd.Timedelta(hours=1)).round())


@pytest.mark.slow
def test_mutated_tables_are_read_rightly_or_refused_with_their_file(clean, tmp_path):
    base, whole = tmp_path / "raw", clean_tables()
    texts = {name: table.to_csv(index=False) for name, table in whole.items()}
    base.mkdir()

    def write(mutation, draw):
        for path in base.iterdir():
            path.unlink()
        tables, place = dict(whole), None
        if mutation in TABLES:
            mutation(tables, draw)
        else:
            place = some_table(tables, draw)
        for name, table in tables.items():
            text = texts[name] if table is whole.get(name) else table.to_csv(index=False)
            text = mutation(text, draw) if name == place else text
            (base / name).write_bytes(text.encode())
        return base / (place or "")

    def fault(found, mutation):
        return difference(found, clean, hours_by_pandas(base))

    refused = try_mutations(TABLES + TEXTS, write, named_file(lambda: blocks_of(base)), fault)
    assert NUMBER / 3 < refused < NUMBER
