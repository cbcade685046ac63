"""GRIB is known by its content, and read where the optional package is installed."""

import sys

import h5py
import numpy as np
import pytest
from travelling_waves import waves

from millrace.data.split import SplitConfig
from millrace.errors import DataError
from millrace.systems.weather.extract import extract_weather
from millrace.systems.weather.settings import WeatherConfig

CONFIG = WeatherConfig(surface=("2t", "msl"), air=("z", "u"), static=("lsm",))
SPLIT = SplitConfig(train=0.5, validation=0.25, gap=1)
SHORT = {
    "2m_temperature": "2t", "mean_sea_level_pressure": "msl", "geopotential": "z",
    "u_component_of_wind": "u", "land_sea_mask": "lsm",
}  # fmt: skip
STEPS = 10


@pytest.fixture
def eccodes():
    pytest.importorskip("cfgrib", reason="the extra grib is not installed", exc_type=Exception)
    return pytest.importorskip("eccodes", reason="the extra grib is not installed")


def messages(eccodes, data, edition=2):
    """The fields of a dataset as messages, level by level and time by time."""
    for name, short in SHORT.items():
        for time in data.time.values:
            for level in data.level.values if "level" in data[name].dims else [None]:
                at = {"time": time, "level": level}
                field = data[name].sel({a: v for a, v in at.items() if a in data[name].dims})
                yield message(
                    eccodes, field.sortby("latitude", ascending=False), short, time, level, edition
                )


def message(eccodes, field, short, time, level, edition):
    kind = "sfc" if level is None else "pl"
    handle = eccodes.codes_grib_new_from_samples(f"regular_ll_{kind}_grib{edition}")
    rows, columns = field.shape
    latitude, longitude = field.latitude.values, field.longitude.values
    date, _, clock = str(time)[:16].partition("T")
    keys = {
        "Ni": columns, "Nj": rows, "bitsPerValue": 24,
        "latitudeOfFirstGridPointInDegrees": latitude[0], "latitudeOfLastGridPointInDegrees": latitude[-1],
        "longitudeOfFirstGridPointInDegrees": longitude[0],
        "longitudeOfLastGridPointInDegrees": longitude[-1],
        "iDirectionIncrementInDegrees": longitude[1] - longitude[0],
        "jDirectionIncrementInDegrees": latitude[0] - latitude[1],
        "dataDate": int(date.replace("-", "")), "dataTime": int(clock.replace(":", "")),
        "shortName": short,
    }  # fmt: skip
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value.item() if hasattr(value, "item") else value)
    if level is not None:
        eccodes.codes_set(handle, "level", int(level))
    eccodes.codes_set_values(handle, field.values.ravel().astype(float))
    content = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return content


def extracted(source, output, config=CONFIG):
    extract_weather(source, output, config, SPLIT)
    with h5py.File(output) as file:
        return {name: file[name][()] for name in ("state", "static", "time", "level", "latitude")}


@pytest.fixture
def expected(tmp_path):
    waves(STEPS).to_netcdf(tmp_path / "expected.nc")
    return extracted(tmp_path / "expected.nc", tmp_path / "expected.h5")


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # 24 bits for the range of each field, and latitudes to a millionth of a degree.
        assert found[name] == pytest.approx(values, rel=1e-5, abs=2e-6), name


@pytest.mark.parametrize("edition", [1, 2])
@pytest.mark.parametrize("name", ["era5.grib", "era5.nc", "download"])
def test_surface_and_pressure_levels_of_one_file_are_read(
    tmp_path, eccodes, expected, name, edition
):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / name).write_bytes(b"".join(messages(eccodes, waves(STEPS), edition)))
    check(extracted(raw, tmp_path / "weather.h5"), expected)
    assert [path.name for path in raw.iterdir()] == [name]  # no index beside the data


def test_messages_may_be_in_any_order_and_in_several_files_beside_netcdf(
    tmp_path, eccodes, expected
):
    raw, data = tmp_path / "raw", waves(STEPS)
    raw.mkdir()
    data[["2m_temperature"]].to_netcdf(raw / "t2m.nc")
    every = [
        one
        for name, one in zip(names_of(data), messages(eccodes, data), strict=True)
        if name != "2t"
    ]
    order = np.random.default_rng(0).permutation(len(every))
    (raw / "a.grb").write_bytes(b"".join(every[n] for n in order[:40]))
    (raw / "b.grb2").write_bytes(b"".join(every[n] for n in order[40:]))
    with pytest.raises(DataError, match=r"[ab]\.gr"):  # hypercubes with holes
        extracted(raw, tmp_path / "weather.h5")
    (raw / "b.grb2").unlink()
    (raw / "a.grb").write_bytes(b"".join(every[n] for n in order))
    check(extracted(raw, tmp_path / "weather.h5"), expected)


def names_of(data):
    for name, short in SHORT.items():
        levels = data.sizes["level"] if "level" in data[name].dims else 1
        yield from [short] * (data.sizes["time"] * levels)


def test_a_file_may_hold_one_time(tmp_path, eccodes, expected):
    raw = tmp_path / "raw"
    raw.mkdir()
    for step in range(STEPS):
        part = waves(STEPS).isel(time=[step])
        (raw / f"{step}.grib2").write_bytes(b"".join(messages(eccodes, part)))
    check(extracted(raw, tmp_path / "weather.h5"), expected)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda every: [*every, every[3]], "2 messages of parameter 167 at .* at 2001-03-01T18:00"),
        (
            lambda every: [*every[:-1], every[-1][:-50]],
            r"not readable as GRIB \(.*\); copy it again",
        ),
        (lambda every: every[:5] + every[6:], "no t2m at 2001-03-02T06:00"),
    ],
    ids=["twice", "truncated", "lacking"],
)
def test_what_is_wrong_in_grib_is_named(tmp_path, eccodes, spoil, told):
    path = tmp_path / "era5.grib"
    path.write_bytes(b"".join(spoil(list(messages(eccodes, waves(STEPS))))))
    with pytest.raises(DataError, match=rf"era5\.grib: {told}"):
        extracted(path, tmp_path / "weather.h5")


def test_says_how_to_read_grib_where_nothing_does(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cfgrib", None)
    (tmp_path / "era5.nc").write_bytes(b"GRIB" + bytes(100))
    with pytest.raises(
        DataError,
        match=r"era5\.nc: it is GRIB: convert .*, or install .*pip install -e '\.\[grib\]'",
    ):
        extracted(tmp_path, tmp_path / "weather.h5")
