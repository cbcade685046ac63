"""Weather in files as people have them: the same samples as from one file, or a sentence about the file."""

import json
import re
import warnings
import zipfile
from collections import Counter

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from travelling_waves import waves

from millrace.data.split import SplitConfig
from millrace.errors import DataError
from millrace.systems.settings import MissingConfig
from millrace.systems.weather import catalogue
from millrace.systems.weather.extract import extract_weather
from millrace.systems.weather.settings import WeatherConfig, WeatherExtraction

CONFIG = WeatherConfig(surface=("2t", "msl"), air=("z", "u"), static=("lsm",))
SPLIT = SplitConfig(train=0.5, validation=0.25, gap=2)
STEPS = 16
SURFACE, AIR = (
    ["2m_temperature", "mean_sea_level_pressure"],
    ["geopotential", "u_component_of_wind"],
)


@pytest.fixture
def samples(tmp_path):
    """(files by name, or one dataset) -> states and static fields."""
    made = iter(range(100))

    def extract(files, config=CONFIG):
        folder = tmp_path / f"source{next(made)}"
        folder.mkdir()
        for name, data in files.items():
            data.to_netcdf(folder / f"{name}.nc")
        extract_weather(folder, tmp_path / "weather.h5", config, SPLIT)
        with h5py.File(tmp_path / "weather.h5") as file:
            return file["state"][()], file["static"][()]

    return extract


def west(data):
    return data.assign_coords(longitude=(data.longitude + 180) % 360 - 180).sortby("longitude")


def flipped(data):
    return data.isel(latitude=slice(None, None, -1))


def shuffled(data):
    order = np.random.default_rng(0).permutation
    return data.isel(latitude=order(16), longitude=order(32), time=order(data.sizes["time"]))


def halves(change):
    return lambda d: {"a": d.isel(time=slice(0, 8)), "b": change(d.isel(time=slice(8, None)))}


def forecast(data):
    """Times as steps from one start, as cfgrib gives forecasts."""
    steps = (data.time - data.time[0]).values
    start = {"time": data.time.values[0], "valid_time": ("step", data.time.values)}
    return data.drop_vars("time").rename(time="step").assign_coords(step=steps, **start)


def without(data, names):
    return data.drop_vars(list(names))


def of_cds(data):
    """Two files of the same times, with the names and axes of the Climate Data Store."""
    names = {"time": "valid_time", "level": "pressure_level"}
    short = {"2m_temperature": "t2m", "mean_sea_level_pressure": "msl"}
    short |= {"geopotential": "z", "u_component_of_wind": "u", "land_sea_mask": "lsm"}
    data = data.rename(names | short).assign_coords(number=0, expver="0001")
    mask = data["lsm"].expand_dims(valid_time=data.valid_time)
    single = data[["t2m", "msl"]].assign(lsm=mask).drop_vars("pressure_level", errors="ignore")
    return {"pressure": data[["z", "u"]], "single": single}


@pytest.mark.parametrize(
    "divided",
    [
        halves(lambda d: d.isel(level=slice(None, None, -1))),
        halves(flipped),
        halves(west),
        halves(shuffled),
        halves(lambda d: d.transpose("longitude", "level", "latitude", "time")),
        lambda d: {"states": without(d, ["land_sea_mask"]), "s": flipped(west(d[["land_sea_mask"]]))},
        lambda d: {f"t{k}": d.isel(time=k) for k in range(STEPS)},
        lambda d: {name: d[[name]] for name in d.data_vars},
        lambda d: {"s": without(d, AIR)} | {f"l{k}": d[AIR].isel(level=k) for k in range(3)},
        of_cds,
        lambda d: {"w": d.assign_coords(level=("level", d.level.values * 100, {"units": "Pa"}))},
        lambda d: {"w": d, "other": xr.Dataset({"tracks": ("storm", [1.0, 2.0])})},
        lambda d: {"w": d.swap_dims(latitude="y", longitude="x", time="record")},
        lambda d: {f"t{k}": forecast(d.isel(time=slice(k, k + 4))) for k in range(0, STEPS, 4)},
    ],
    ids=[
        "level", "latitude", "longitude", "shuffled", "order of axes", "static", "one file a time",
        "one file a variable", "one file a level", "CDS", "levels in Pa", "another file",
        "numbered axes", "steps of forecasts",
    ],
)  # fmt: skip
def test_files_are_put_together_by_label(samples, divided):
    data = waves(STEPS)
    expected, found = samples({"one": data}), samples(divided(data))
    assert np.array_equal(expected[0], found[0])
    assert np.array_equal(expected[1], found[1])


@pytest.mark.parametrize(
    ("name", "unit", "to_unit"),
    [
        ("2m_temperature", "degrees_C", lambda v: v - 273.15),
        ("mean_sea_level_pressure", "millibars", lambda v: v / 100),
        ("geopotential", "m", lambda v: v / 9.80665),
        ("geopotential", "m^2/s^2", lambda v: v),
        ("u_component_of_wind", "km h-1", lambda v: v * 3.6),
    ],
)
def test_each_file_is_read_in_its_own_unit(samples, name, unit, to_unit):
    def in_other(data):
        return data.assign({name: to_unit(data[name]).assign_attrs(units=unit)})

    data = waves(STEPS)
    expected, found = samples({"one": data}), samples(halves(in_other)(data))
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-4)


def test_static_fields_are_turned_into_si_units(samples):
    config = CONFIG.model_copy(update={"static": ("z", "lsm")})
    data = waves(STEPS)
    height = 2_200 * data["land_sea_mask"]
    share = (100 * data["land_sea_mask"]).assign_attrs(units="%")
    ground = height.assign_attrs(units="m")
    found = samples({"w": data.assign(geopotential_at_surface=ground, land_sea_mask=share)}, config)
    assert found[1].max(axis=(1, 2)) == pytest.approx([2_200 * 9.80665, 1.0], rel=1e-6)


def bare(data, name, values):
    return data.assign({name: values.drop_attrs()})


def spoilt(data, value, count):
    values = data["mean_sea_level_pressure"].values.copy()
    values[3, 4, 5 : 5 + count] = value
    return data.assign(mean_sea_level_pressure=data["mean_sea_level_pressure"].copy(data=values))


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (
            halves(lambda d: bare(d, "2m_temperature", d["2m_temperature"] - 273.15)),
            r"b\.nc: 2m_temperature has no attribute units, but its mean of .* looks like 'degC'",
        ),
        (
            halves(lambda d: bare(d, "geopotential", d["geopotential"] / 9.80665)),
            r"b\.nc: geopotential has no attribute units, .* looks like 'm'",
        ),
        (
            lambda d: {
                "w": d.assign(
                    mean_sea_level_pressure=d["mean_sea_level_pressure"].assign_attrs(units="hPa")
                )
            },
            "mean_sea_level_pressure is said to be in 'hPa', .* looks like 'Pa'",
        ),
        (halves(lambda d: d.isel(latitude=slice(1, None))), "b.nc: latitudes reach from"),
        (halves(lambda d: d.isel(latitude=[*range(7), *range(8, 16)])), "b.nc: no latitude between"),
        (halves(lambda d: d.assign_coords(latitude=d.latitude * 0.99)), r"b\.nc: .* are not those"),
        (
            lambda d: {"w": without(d, ["land_sea_mask"]), "s": d[["land_sea_mask"]].isel(longitude=[0])},
            r"s\.nc: longitudes do not go once around",
        ),
        (
            lambda d: {"a": d, "b": d[["geopotential"]].isel(time=[3])},
            "b.nc: geopotential at 300 hPa at 2001-03-01T18:00 is there twice, also in a.nc",
        ),
        (
            lambda d: {"a": d[SURFACE], "b": without(d, SURFACE).isel(time=slice(0, -1))},
            "no geopotential at 300 hPa at 2001-03-04T18:00",
        ),
        (
            lambda d: {"w": d.assign_coords(level=("level", [1, 2, 3], {"units": "1"}))},
            "level is in '1'; expected a pressure",
        ),
        (
            lambda d: {"w": d.assign(t2m=d["2m_temperature"] + 1)},
            r"w\.nc: 2m_temperature and t2m are both 2t; leave one out",
        ),
        (
            lambda d: {"a": d, "b": d[["land_sea_mask"]].roll(longitude=1)},
            r"b\.nc: land_sea_mask is not that of .*a\.nc: land_sea_mask; keep one",
        ),
        (
            lambda d: {"w": d.assign(land_sea_mask=d["land_sea_mask"].where(d.time > d.time[4], 1.0))},
            r"w\.nc: land_sea_mask changes in time; expected a static field",
        ),
        (
            lambda d: {"w": d.isel(longitude=[*range(32), 0])},
            r"w\.nc: longitude 0 is there twice \(0 and 360 are one\)",
        ),
        (
            lambda d: {"w": d.isel(longitude=slice(0, 20))},
            r"w\.nc: longitudes .* none between 213\.75 and 360; rows from pole to pole .* are needed: "
            "give files of the whole globe, or say by weather.area what part of it is wanted",
        ),
        (
            lambda d: {"w": d.isel(latitude=slice(3, 9))},
            r"w\.nc: latitudes reach from -50\.4 to 5\.6; rows from pole to pole .* are needed",
        ),
        (
            lambda d: {"w": d.stack(values=("latitude", "longitude")).reset_index("values")},
            r"w\.nc: latitude has the axes values; expected a grid .* `cdo setgridtype,regular`",
        ),
        (
            lambda d: {"w": d.assign(land_sea_mask=d["land_sea_mask"].assign_attrs(units="%"))},
            "land_sea_mask is said to be in '%', but its largest value of 1 looks like '1'",
        ),
        (lambda d: {"w": spoilt(d, -999.0, 1)}, "-999 at 2001-03-01T18:00, latitude -39.2, longitude 56"),
        (lambda d: {"w": spoilt(d, 1e20, 5)}, "1e.20 at .* looks like a no-data value"),
    ],
)  # fmt: skip
def test_what_would_be_silently_wrong_is_refused(samples, broken, told):
    with pytest.raises(DataError, match=told):
        samples(broken(waves(STEPS)))


def test_a_value_that_is_said_to_be_data_is_kept(samples):
    missing = MissingConfig(value=-999.0, then="keep")
    config = WeatherExtraction(**CONFIG.model_dump(), missing=missing)
    state, _ = samples({"w": spoilt(waves(STEPS), -999.0, 1)}, config)
    assert (state == -999.0).sum() == 1


@pytest.mark.parametrize(
    ("start", "told"), [(b"GRIB", "it is GRIB"), (None, "it is a ZIP archive")]
)
def test_says_what_a_file_is_that_is_no_netcdf(tmp_path, start, told):
    path = tmp_path / "download.nc"
    if start:
        path.write_bytes(start + bytes(100))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.nc", "")
    with pytest.raises(DataError, match=rf"download\.nc: .*{told}"):
        extract_weather(tmp_path, tmp_path / "weather.h5", CONFIG, SPLIT)


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize(("cell", "told"), [("", "is blank"), ("x", "is 'x'"), ("1,5", "7 cells")])
def test_a_row_of_csv_without_its_place_is_refused(tmp_path, column, cell, told):
    data = waves(8, rows=4, columns=4)
    rows = ["time,lat,lon,level,2m_temperature,geopotential"]
    for time in data.time.values:
        for lat in data.latitude.values:
            for lon in data.longitude.values:
                at = data.sel(time=time, latitude=lat, longitude=lon)
                place = f"{str(time)[:16]},{lat},{lon}"
                rows.append(f"{place},,{at['2m_temperature']:.3f},")
                rows.append(f"{place},500,,{at['geopotential'].sel(level=500):.1f}")
    cells = rows[31].split(",")
    cells[column] = cell
    rows[31] = ",".join(cells)
    (tmp_path / "w.csv").write_text("\n".join(rows) + "\n")
    config = WeatherConfig(surface=("2t",), air=("z",), static=())
    with pytest.raises(DataError, match=rf"w\.csv:32: .*{told}"):
        extract_weather(tmp_path / "w.csv", tmp_path / "weather.h5", config, SPLIT)


@pytest.fixture
def reads(monkeypatch):
    """How often each chunk of states of a Zarr store is read."""
    counts = Counter()
    original = zarr.storage.LocalStore.get

    async def get(store, key, *args, **kwargs):
        if re.search(r"/\d+[./]\d+[./]\d+", key):
            counts[key] += 1
        return await original(store, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", get)
    return counts


@pytest.mark.parametrize("length", [1, 3, 8, STEPS, 100])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_each_chunk_of_a_store_is_unpacked_once(tmp_path, samples, reads, length, zarr_format):
    data = waves(STEPS)
    expected = samples({"one": data})
    chunks = {
        name: {"chunks": (length, *v.shape[1:])} for name, v in data.items() if "time" in v.dims
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.to_zarr(tmp_path / "w.zarr", encoding=chunks, zarr_format=zarr_format)
    reads.clear()
    extract_weather(tmp_path / "w.zarr", tmp_path / "weather.h5", CONFIG, SPLIT)
    assert len(reads) == 4 * -(-STEPS // length)
    assert set(reads.values()) == {1}
    with h5py.File(tmp_path / "weather.h5") as file:
        assert np.array_equal(file["state"][()], expected[0])


def test_chunks_longer_than_memory_are_read_in_as_few_parts_as_fit(
    tmp_path, samples, reads, monkeypatch
):
    data = waves(STEPS)
    expected = samples({"one": data})
    chunks = {name: {"chunks": (8, *v.shape[1:])} for name, v in data.items() if "time" in v.dims}
    data.to_zarr(tmp_path / "w.zarr", encoding=chunks, zarr_format=2)
    monkeypatch.setattr(catalogue, "ALL_BYTES", 3 * 8 * 8 * 16 * 32)  # three of eight states
    monkeypatch.setattr(catalogue, "BLOCK_BYTES", 1)
    reads.clear()
    extract_weather(tmp_path / "w.zarr", tmp_path / "weather.h5", CONFIG, SPLIT)
    assert set(reads.values()) == {3}
    with h5py.File(tmp_path / "weather.h5") as file:
        assert np.array_equal(file["state"][()], expected[0])


@pytest.mark.parametrize("version", ["NETCDF3_CLASSIC", "NETCDF3_64BIT"])
def test_classic_netcdf_that_is_cut_off_is_refused_and_not_read_as_zeros(tmp_path, version):
    (tmp_path / "source").mkdir()
    path = tmp_path / "source/a.nc"
    waves(STEPS).drop_encoding().to_netcdf(path, format=version)
    extract_weather(path.parent, tmp_path / "weather.h5", CONFIG, SPLIT)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"a\.nc: cut off, 1000 bytes are missing"):
        extract_weather(path.parent, tmp_path / "weather.h5", CONFIG, SPLIT)


def test_an_account_says_what_was_read_and_left_out(tmp_path, samples, capsys):
    data = waves(STEPS + 1, rows=17)
    hours = np.datetime64("2001-03-01", "ns") + np.arange(STEPS + 1) * np.timedelta64(3, "h")
    data = data.assign_coords(time=hours).assign(skin=data["2m_temperature"])
    folder = tmp_path / "raw"
    (folder / "more").mkdir(parents=True)
    data.isel(time=slice(0, 9)).to_netcdf(folder / "a.nc")
    data.isel(time=slice(9, None)).to_netcdf(folder / "b.nc")
    xr.Dataset({"tracks": ("storm", [1.0, 2.0])}).to_netcdf(folder / "storms.nc")
    (folder / "order.txt").write_text("request")
    config = CONFIG.model_copy(update={"levels": (300.0, 850.0)})
    extract_weather(
        folder, tmp_path / "weather.h5", config, SplitConfig(train=0.5, validation=0.25, gap=1)
    )
    left = "left_out"
    account = json.loads((tmp_path / "samples.json").read_text())
    account.pop("seal")
    assert account == {
        "cells": {
            "read": 17 * 32,
            "kept": 16 * 32,
            left: {"in the last of an odd number of rows": 32},
        },
        "files": {
            "read": 5,
            "kept": 2,
            left: {
                "folders that are no Zarr store": 1,
                "of another kind": 1,
                "without a variable that is asked for": 1,
            },
        },
        "levels": {"read": 3, "kept": 2, left: {"not asked for": 1}},
        "states": {
            "read": 17,
            "kept": 7,
            left: {"at times between those every 6 h": 8, "in the gaps of the split": 2},
        },
        "variables": {"read": 6, "kept": 5, left: {"not asked for": 1}},
    }
    assert "variables: 6 read, 5 kept; 1 not asked for" in capsys.readouterr().err
