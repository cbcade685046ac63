"""ICON files in all the forms in which they come, and a sentence for each thing that can be wrong."""

import shutil

import netCDF4
import numpy as np
import pandas as pd
import pytest

from millrace.data.account import Account
from millrace.errors import DataError
from millrace.systems.downscaling.icon import open_source
from millrace.systems.downscaling.icon_source import FieldScreening, refuse_no_data
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.systems.downscaling.simulator.icosphere import Icosphere

CONFIG = ClimateConfig(level=1, steps=6, steps_per_file=3)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("icon") / "raw"
    write_climate(CONFIG, path)
    return path


@pytest.fixture
def raw(original, tmp_path):
    return shutil.copytree(original, tmp_path / "raw")


def edit(path):
    return netCDF4.Dataset(path, "r+")


def rewrite(path, dimension="ncells", units=None, time_units=None, height=True):
    """The same file with another name of the cells, units of the centres, kind of time, dimensions."""
    with netCDF4.Dataset(path) as file:
        tas, time, uuid = file["tas"][:], file["time"][:], file.uuidOfHGrid
        lon, lat = file["clon"][:], file["clat"][:]
    path.unlink()
    with netCDF4.Dataset(path, "w", format="NETCDF3_64BIT_OFFSET") as file:
        file.createDimension("time", None)
        file.createDimension(dimension, tas.shape[-1])
        dimensions = ("time", dimension)
        if height:
            file.createDimension("height", 1)
            dimensions = ("time", "height", dimension)
        file.createVariable("time", "f8", ("time",)).units = time_units or "day as %Y%m%d.%f"
        if time_units is not None:
            time = (time - 20200101) * 24
        file["time"][:] = time
        scale = 180 / np.pi if units == "degrees" else 1.0
        for name, values in (("clon", lon), ("clat", lat)):
            variable = file.createVariable(name, "f8", (dimension,))
            variable[:] = values * scale
            if units is not None:
                variable.units = units
        variable = file.createVariable("tas", "f4", dimensions)
        variable[:] = tas if height else tas[:, 0]
        if units is None:
            file.uuidOfHGrid = uuid


def values(source):
    spans = [span for group in source.fields.groups(2, 1) for span in group]
    screening = FieldScreening(None)
    found = np.concatenate(list(source.fields.slabs(spans, screening)))
    refuse_no_data([screening.evidence()], None)
    return found


def test_reads_what_the_demo_wrote(raw):
    source = open_source(raw, ["tas"], levels=1)
    grid = Icosphere.build(1)
    assert [len(g.lon_N) for g in source.grids] == [320]
    assert source.grids[0].name == "R2B01"
    assert np.array_equal(source.grids[0].neighbours_N3, grid.neighbours_N3)
    assert source.grids[0].centres_N3 == pytest.approx(grid.centres_N3)
    assert set(source.grids[0].land_N) <= {0.0, 1.0}
    days = (np.datetime64("2020-01-01") - np.datetime64("1970-01-01")).astype(float)
    assert source.fields.time_T == pytest.approx(days + np.arange(6) / 4, abs=1e-9)
    assert source.fields.units == ("K",)
    with netCDF4.Dataset(raw / "output/tas_0001.nc") as file:
        assert np.array_equal(values(source)[3:, :, 0], file["tas"][:, 0])


@pytest.mark.parametrize(("name", "whole"), [("fr_land", 1.0), ("sftlf", 100.0)])
def test_a_share_of_land_is_one_or_a_hundred_percent(original, raw, name, whole):
    with edit(raw / "grids/R2B01.nc") as file:
        share = np.where(file["cell_sea_land_mask"][:] > 0, 0.75, 0.25)
        file.renameVariable("cell_sea_land_mask", "mask")
        file.createVariable(name, "f8", ("cell",))[:] = whole * share
    [found] = open_source(raw, ["tas"], levels=1).grids
    [mask] = open_source(original, ["tas"], levels=1).grids
    assert found.land_N == pytest.approx(0.25 + 0.5 * mask.land_N)


@pytest.mark.parametrize(
    "form",
    [
        {"dimension": "cell"},
        {"dimension": "i", "height": False},
        {"units": "degrees"},
        {"units": "radian"},
        {"time_units": "hours since 2020-01-01 00:00:00"},
    ],
    ids=str,
)
def test_other_forms_give_the_same(original, raw, form):
    for path in (raw / "output").iterdir():
        rewrite(path, **form)
    expected, found = (open_source(path, ["tas"], levels=1) for path in (original, raw))
    assert np.array_equal(values(expected), values(found))
    assert found.fields.time_T == pytest.approx(expected.fields.time_T, abs=1e-9)


def test_chain_of_grids_follows_the_uuids(raw):
    write_climate(ClimateConfig(level=2, steps=1), raw.parent / "two")
    source = open_source(raw.parent / "two", ["tas"], levels=2)
    assert [grid.name for grid in source.grids] == ["R2B02", "R2B01"]


def test_another_grid(raw):
    with edit(raw / "output/tas_0000.nc") as file:
        file.uuidOfHGrid = "00000000-0000-0000-0000-000000000000"
        file["clon"][0] += 0.01
    with pytest.raises(
        DataError, match=r"uuidOfHGrid 00000000.* is that of none of the grid files"
    ):
        open_source(raw, ["tas"], levels=1)


def test_one_file_on_another_grid(raw):
    with edit(raw / "output/tas_0001.nc") as file:
        file.uuidOfHGrid = "00000000-0000-0000-0000-000000000000"
        file["clat"][7] += 0.01
    with pytest.raises(DataError, match=r"tas_0001\.nc: uuidOfHGrid .* all output files"):
        open_source(raw, ["tas"], levels=1)


def test_missing_parents(raw):
    with pytest.raises(DataError, match="parent_cell_index is missing for 80 cells"):
        open_source(raw, ["tas"], levels=2)
    (raw / "grids/R2B00.nc").unlink()
    with pytest.raises(DataError, match=r"R2B01\.nc: the grid that it refines .* levels = 2"):
        open_source(raw, ["tas"], levels=2)


def test_no_grid_file(raw):
    shutil.rmtree(raw / "grids")
    with pytest.raises(DataError, match="no grid file"):
        open_source(raw, ["tas"], levels=1)


def test_mixed_time_axes(raw):
    rewrite(raw / "output/tas_0001.nc", time_units="hours since 2020-01-01 00:00:00")
    with pytest.raises(DataError, match=r"its time is relative, that of tas_0000\.nc is absolute"):
        open_source(raw, ["tas"], levels=1)


def test_times_twice_and_unknown_units(raw):
    shutil.copy(raw / "output/tas_0001.nc", raw / "output/tas_0002.nc")
    with pytest.raises(DataError, match=r"tas_0002\.nc: begins before tas_0001\.nc ends"):
        open_source(raw, ["tas"], levels=1)
    (raw / "output/tas_0002.nc").unlink()
    with edit(raw / "output/tas_0001.nc") as file:
        file["time"].units = "fortnights"
    with pytest.raises(DataError, match="time has units 'fortnights'"):
        open_source(raw, ["tas"], levels=1)


def test_missing_values(raw):
    with edit(raw / "output/tas_0001.nc") as file:
        file["tas"][1, 0, 17] = np.nan
    source = open_source(raw, ["tas"], levels=1)
    with pytest.raises(DataError, match=r"tas_0001\.nc: tas has 1 missing .* time 1, cell 18"):
        values(source)


def test_missing_variable(raw):
    with pytest.raises(DataError, match="none of the 2 output files has 'pr'"):
        open_source(raw, ["pr"], levels=1)
    with pytest.raises(DataError, match="no variable 'pr'; it has tas"):
        open_source(raw, ["tas", "pr"], levels=1)


def test_truncated_file(raw):
    path = raw / "output/tas_0001.nc"
    path.write_bytes(path.read_bytes()[:2_000])
    with pytest.raises(DataError, match=r"tas_0001\.nc: truncated or damaged NetCDF"):
        open_source(raw, ["tas"], levels=1)


@pytest.fixture
def csv(original, tmp_path):
    source, grid = open_source(original, ["tas"], levels=1), Icosphere.build(1)
    path = tmp_path / "csv"
    path.mkdir()
    cells = pd.DataFrame({"cell": np.arange(320) + 1, "clon": source.grids[0].lon_N})
    cells["clat"], cells["cell_area"] = source.grids[0].lat_N, grid.area_N
    for k in range(3):
        cells[f"neighbor_{k + 1}"] = grid.neighbours_N3[:, k] + 1
    cells["parent_1"] = grid.parent_N + 1
    cells.to_csv(path / "grid.csv", index=False)
    fields = values(source)
    times = pd.date_range("2020-01-01", periods=6, freq="6h").strftime("%Y-%m-%dT%H:%M")
    table = cells[["cell", "clon", "clat"]]
    parts = [table.assign(time=t, tas=f[:, 0]) for t, f in zip(times, fields, strict=True)]
    shuffled = pd.concat([part.sample(frac=1, random_state=0) for part in parts])
    shuffled.to_csv(path / "fields.csv", index=False)
    return path


def test_csv_gives_the_same_as_netcdf(original, csv, monkeypatch):
    monkeypatch.setattr("millrace.systems.downscaling.icon_csv.ROWS", 500)
    expected, found = (open_source(path, ["tas"], levels=1) for path in (original, csv))
    assert values(found) == pytest.approx(values(expected), abs=1e-3)
    assert found.fields.time_T == pytest.approx(expected.fields.time_T, abs=1e-9)
    assert np.array_equal(found.grids[0].parent_N, expected.grids[0].parent_N)


def test_csv_errors(csv):
    with pytest.raises(DataError, match="no column 'parent_2'; levels = 2"):
        open_source(csv, ["tas"], levels=2)
    with pytest.raises(DataError, match="no column 'pr'; it has"):
        open_source(csv, ["pr"], levels=1)
    lines = (csv / "fields.csv").read_text().splitlines()
    (csv / "fields.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(
        DataError,
        match=r"fields\.csv:1602: time 2020-01-02T06:00 has 319 rows",
    ):
        values(open_source(csv, ["tas"], levels=1))


def test_each_file_is_read_in_its_own_unit(original, raw):
    with edit(raw / "output/tas_0001.nc") as file:
        file["tas"][:] = file["tas"][:] - 273.15
        file["tas"].units = "degrees_C"
    expected, found = (open_source(path, ["tas"], levels=1) for path in (original, raw))
    assert found.fields.units == ("K",)
    assert values(found) == pytest.approx(values(expected), abs=1e-4)


def in_celsius(file):
    file["tas"][:] = file["tas"][:] - 273.15


def without_unit(file):
    del file["tas"].units


def in_another_quantity(file):
    file["tas"].units = "m s-1"


def elsewhere(file):
    file["clon"][:] = np.roll(file["clon"][:], 1)


def with_fill(file):
    file["tas"][1, 0, 17:20] = 1e20


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (in_celsius, r"tas_0001\.nc: tas is said to be in 'K', .* looks like 'degC'"),
        (without_unit, r"tas_0001\.nc: tas has no attribute units, in tas_0000\.nc it is in 'K'"),
        (in_another_quantity, r"tas_0001\.nc: tas is in 'm s-1'; expected 'K' as in tas_0000\.nc"),
        (
            elsewhere,
            r"tas_0001\.nc: uuidOfHGrid is that of R2B01\.nc, but the centres of its cells",
        ),
        (with_fill, r"tas_0001\.nc: 1e\+20 at time 1, cell 18 in 'tas' looks like a no-data value"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(raw, broken, told):
    with edit(raw / "output/tas_0001.nc") as file:
        broken(file)
    with pytest.raises(DataError, match=told):
        values(open_source(raw, ["tas"], levels=1))


def test_cells_in_another_order_are_put_in_that_of_the_grid(original, raw):
    order = np.random.default_rng(0).permutation(320)
    with edit(raw / "output/tas_0001.nc") as file:
        for name in ("tas", "clon", "clat"):
            file[name][:] = file[name][:][..., order]
    expected, found = (open_source(path, ["tas"], levels=1) for path in (original, raw))
    assert np.array_equal(values(found), values(expected))


def test_axes_in_another_order_and_a_single_time_are_read(original, raw):
    with edit(raw / "output/tas_0000.nc") as file:
        tas, time, uuid = file["tas"][:, 0], file["time"][:], file.uuidOfHGrid
    (raw / "output/tas_0000.nc").unlink()
    for step in range(3):
        with netCDF4.Dataset(raw / f"output/tas_0000_{step}.nc", "w") as file:
            file.uuidOfHGrid = uuid
            file.createDimension("time", 1)
            file.createDimension("ncells", 320)
            is_scalar = step == 1
            file.createVariable("time", "f8", () if is_scalar else ("time",))[...] = time[step]
            file["time"].units = "day as %Y%m%d.%f"
            axes = ("ncells",) if is_scalar else ("ncells", "time")
            variable = file.createVariable("tas", "f4", axes)
            variable.units = "K"
            variable[:] = tas[step] if is_scalar else tas[step][:, None]
    expected, found = (open_source(path, ["tas"], levels=1) for path in (original, raw))
    assert np.array_equal(values(found), values(expected))


def test_variables_are_found_in_files_of_their_own(original, raw):
    for path in sorted((raw / "output").iterdir()):
        other = shutil.copy(path, raw / f"aa_{path.name}")
        with edit(other) as file:
            file["tas"][:] = 100_000 + file["tas"][:]
            file["tas"].units = "Pa"
            file.renameVariable("tas", "psl")
    source = open_source(raw, ["tas", "psl"], levels=1)
    found, expected = values(source), values(open_source(original, ["tas"], levels=1))
    assert source.fields.units == ("K", "Pa")
    assert np.array_equal(found[..., :1], expected)
    assert found[..., 1:] == pytest.approx(100_000 + expected, rel=1e-6)
    (raw / "aa_tas_0001.nc").unlink()
    with pytest.raises(DataError, match="psl and tas do not have the same times, 2020-01-01T18"):
        open_source(raw, ["tas", "psl"], levels=1)


def test_other_files_of_a_run_do_not_matter(original, raw):
    with netCDF4.Dataset(raw / "aa_extpar.nc", "w") as file:
        file.createDimension("cell", 320)
        file.createVariable("topography_c", "f8", ("cell",))[:] = 0.0
    with netCDF4.Dataset(raw / "ab_latlon.nc", "w") as file:
        for name, size in (("time", 2), ("lat", 4), ("lon", 8)):
            file.createDimension(name, size)
            file.createVariable(name, "f8", (name,))[:] = np.arange(size)
        file.createVariable("tas", "f4", ("time", "lat", "lon"))[:] = 280.0
    with netCDF4.Dataset(raw / "ac_edges.nc", "w") as file:
        file.createDimension("time", 2)
        file.createDimension("edge", 480)
        file.createVariable("vn", "f4", ("time", "edge"))[:] = 0.0
    expected, found = (open_source(path, ["tas"], levels=1) for path in (original, raw))
    assert np.array_equal(values(found), values(expected))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda cells: [*cells[:-1], cells[-1].replace(".", ",")],
            r"csv:61: row of 6 cells; expected 5",
        ),
        (lambda cells: [*cells[:-1], cells[-1] + "x"], r"csv:61: tas is '.*x', not a number"),
        (lambda cells: [*cells[:-1], cells[-1] + "\udcff"], "csv:61: byte 0xff is not UTF-8"),
        (lambda cells: [*cells[:-1], ""], "csv:61: 1 rows have missing"),
        (
            lambda cells: [cells[0], "1.0", *cells[2:]],
            "csv:61: clon and clat are not those of cell",
        ),
    ],
)
def test_a_row_of_csv_that_is_not_whole_is_refused(csv, spoil, told):
    path = csv / "fields.csv"
    lines = path.read_text().splitlines()
    lines[60] = ",".join(spoil(lines[60].split(",")))
    path.write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=told):
        values(open_source(csv, ["tas"], levels=1))


def test_a_field_without_a_time_is_refused(raw):
    with netCDF4.Dataset(raw / "output/tas_0002.nc", "w") as file:
        file.createDimension("ncells", 320)
        file.createVariable("tas", "f4", ("ncells",))[:] = 280.0
    with pytest.raises(DataError, match=r"tas_0002\.nc: tas has dimensions ncells and no time"):
        open_source(raw, ["tas"], levels=1)


def test_files_that_are_left_out_are_counted(raw):
    with netCDF4.Dataset(raw / "extpar.nc", "w") as file:
        file.createDimension("cell", 320)
        file.createVariable("topography_c", "f8", ("cell",))[:] = 0.0
    account = Account()
    open_source(raw, ["tas"], levels=1, account=account)
    left = {"without tas on cells": 1, "grids that are not needed": 1}
    assert account.to_json() == {"files": {"read": 5, "kept": 3, "left_out": left}}


@pytest.mark.parametrize("version", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET"])
def test_classic_netcdf_that_is_cut_off_is_refused(raw, version):
    path = raw / "output/tas_0001.nc"
    rewrite(path)
    with netCDF4.Dataset(path) as file:
        tas, centres = file["tas"][:], [file[name][:] for name in ("clon", "clat")]
    with netCDF4.Dataset(path, "w", format=version) as file:
        file.createDimension("time", None)
        file.createDimension("ncells", 320)
        for name, angle in zip(("clon", "clat"), centres, strict=True):
            file.createVariable(name, "f8", ("ncells",))[:] = angle
        file.createVariable("time", "f8", ("time",))[:] = [20200101.75, 20200102, 20200102.25]
        file["time"].units = "day as %Y%m%d.%f"
        file.createVariable("tas", "f4", ("time", "ncells"))[:] = tas[:, 0]
        file["tas"].units = "K"
    open_source(raw, ["tas"], levels=1)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"tas_0001\.nc: cut off, 40 bytes are missing"):
        open_source(raw, ["tas"], levels=1)


def of_another_name(file):
    file.renameDimension("ncells", "points")


def of_another_calendar(file):
    file["time"].units, file["time"].calendar = "days since 2020-01-01", "360_day"
    file["time"][:] = [1, 2, 3]


def with_later_celsius(file):
    file["tas"][2] = file["tas"][2] - 273.15


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            of_another_name,
            r"tas_0001\.nc: tas has dimensions time, height, points; expected time and",
        ),
        (of_another_calendar, r"tas_0001\.nc is relative in the calendar 360_day; write all"),
        (with_later_celsius, r"tas_0001\.nc: tas is said to be in 'K', .* looks like 'degC'"),
    ],
)
def test_a_file_unlike_the_others_is_refused(raw, spoil, told):
    if spoil is of_another_calendar:
        rewrite(raw / "output/tas_0000.nc", time_units="hours since 2020-01-01")
    with edit(raw / "output/tas_0001.nc") as file:
        spoil(file)
    with pytest.raises(DataError, match=told):
        values(open_source(raw, ["tas"], levels=1))


def test_a_unit_of_something_else_in_all_files_is_refused(raw):
    for path in (raw / "output").iterdir():
        with edit(path) as file:
            file["tas"].units = "m s-1"
    with pytest.raises(DataError, match=r"tas_0000\.nc: tas is in 'm s-1'; expected 'K'"):
        values(open_source(raw, ["tas"], levels=1))


def rolled(file):
    for name in ("clon", "clat"):
        file[name][:] = np.roll(file[name][:], 5)


def one_sided(file):
    file["neighbor_cell_index"][0, 7] = 200


def in_degrees(file):
    file["clon"].units = file["clat"].units = "degree"


def out_of_degrees(file):
    for name in ("clon", "clat"):
        file[name][:] = np.rad2deg(file[name][:])


def without_area(file):
    file["cell_area"][3] = 0.0


def height_unknown(file):
    file["cell_elevation"][5:9] = -9999.0


def height_in_centimetres(file):
    file["cell_elevation"][:] = 1e6 + 0 * file["cell_elevation"][:]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (rolled, "the centres, clon and clat, are not those of these cells"),
        (one_sided, "cell 8 is a neighbour of cell 3, but not the other way round"),
        (in_degrees, "perhaps radians said to be degrees"),
        (out_of_degrees, r"longitudes to 1.. and latitudes to .* in 'radian'; expected places"),
        (without_area, "cell_area of cell 4 is 0; expected a positive number"),
        (height_unknown, "-9999 at cell 6 in 'elevation' looks like a no-data value"),
        (height_in_centimetres, "elevation reaches 1e.06 m; expected metres"),
    ],
)
def test_a_grid_that_contradicts_itself_is_refused(raw, spoil, told):
    with edit(raw / "grids/R2B01.nc") as file:
        spoil(file)
    with pytest.raises(DataError, match=rf"R2B01\.nc: .*{told}"):
        open_source(raw, ["tas"], levels=1)


def test_an_elevation_in_kilometres_is_converted(original, raw):
    with edit(raw / "grids/R2B01.nc") as file:
        file["cell_elevation"][:] = file["cell_elevation"][:] / 1000
        file["cell_elevation"].units = "km"
    [found], [expected] = (open_source(path, ["tas"], levels=1).grids for path in (raw, original))
    assert found.elevation_N == pytest.approx(expected.elevation_N)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("neighbor_2", "3.5", r"csv:5: neighbor_2 is 3\.5; expected a whole number"),
        ("neighbor_2", "999", "csv: neighbor_cell_index names cell 999 of 320"),
        ("parent_1", "0", "csv:5: parent_1 is 0; expected the number of a coarser cell"),
        ("cell_area", "", "csv:5: cell_area is blank; expected a number"),
        ("elevation", "", "csv:5: elevation is blank; expected a number"),
        ("clat", "-999", "csv: its grid has longitudes to .* latitudes to 999"),
    ],
)
def test_a_number_of_the_grid_as_csv_that_cannot_be_is_refused(csv, column, value, told):
    table = pd.read_csv(csv / "grid.csv", dtype=str).assign(elevation="10.5")
    table.loc[3, column] = value
    table.to_csv(csv / "grid.csv", index=False)
    with pytest.raises(DataError, match=rf"grid\.{told}"):
        open_source(csv, ["tas"], levels=1)


def test_a_time_of_csv_that_stands_twice_is_refused(csv):
    table = pd.read_csv(csv / "fields.csv")
    twice = pd.concat([table[:320], table])
    twice.to_csv(csv / "fields.csv", index=False)
    with pytest.raises(DataError, match=r"fields\.csv:2: time 2020-01-01T00:00 has 640 rows"):
        open_source(csv, ["tas"], levels=1)


def test_times_of_csv_may_have_a_zone(csv):
    expected = open_source(csv, ["tas"], levels=1).fields.time_T
    path = csv / "fields.csv"
    path.write_text(path.read_text().replace(":00,", ":00Z,"))
    assert np.array_equal(open_source(csv, ["tas"], levels=1).fields.time_T, expected)
    path.write_text(path.read_text().replace("2020-01-01T06:00Z", "soon"))
    with pytest.raises(DataError, match=r"fields\.csv:322: time 'soon'; expected ISO 8601"):
        open_source(csv, ["tas"], levels=1)
