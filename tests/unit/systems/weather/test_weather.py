"""Weather files of all conventions give the same samples; what is wrong is named."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from travelling_waves import waves

from millrace.data.split import SplitConfig
from millrace.data.units import conversion, converted
from millrace.errors import DataError
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.extract import WeatherConfig, extract_weather
from millrace.systems.weather.settings import WeatherWindowConfig
from millrace.systems.weather.units import SI

CONFIG = WeatherConfig(surface=("2t", "msl"), air=("z", "u"), static=("lsm",))
SPLIT = SplitConfig(train=0.5, validation=0.25, gap=2)
STEPS = 24


@pytest.fixture
def extracted(tmp_path):
    """(dataset) -> path of weather.h5 made of it."""

    def extract(data, name="weather.nc", config=CONFIG):
        path = tmp_path / name
        data.to_zarr(path) if path.suffix == ".zarr" else data.to_netcdf(path)
        extract_weather(path, tmp_path / "weather.h5", config, SPLIT)
        return tmp_path / "weather.h5"

    return extract


def content(path):
    with h5py.File(path) as file:
        return {
            name: file[name][()] for name in ("state", "static", "latitude", "longitude", "time")
        }


def same(one, other):
    return all(np.allclose(one[name], other[name], rtol=1e-6) for name in one)


def test_states_in_order(extracted):
    data = waves(STEPS)
    found = content(extracted(data))
    assert found["state"].shape == (STEPS, 2 + 2 * 3, 16, 32)
    flipped = data.isel(latitude=slice(None, None, -1))
    assert found["latitude"] == pytest.approx(flipped["latitude"].values)
    assert np.all(np.diff(found["latitude"]) < 0)
    assert found["state"][5, 0] == pytest.approx(flipped["2m_temperature"].values[5], rel=1e-6)
    assert found["state"][5, 4] == pytest.approx(flipped["geopotential"].values[5, 2], rel=1e-6)
    assert found["state"][5, 6] == pytest.approx(
        flipped["u_component_of_wind"].values[5, 1], rel=1e-5
    )
    assert found["static"][0] == pytest.approx(flipped["land_sea_mask"].values)
    assert found["time"][0] == 11382.0  # days from 1970 to 2001-03-01


@pytest.mark.parametrize(
    "changed",
    [
        lambda d: d.isel(latitude=slice(None, None, -1)),
        lambda d: d.isel(level=slice(None, None, -1)),
        lambda d: d.assign_coords(longitude=(d.longitude + 180) % 360 - 180).sortby("longitude"),
        lambda d: d.rename(latitude="lat", longitude="lon", time="valid_time"),
        lambda d: d.transpose("longitude", "latitude", "time", "level"),
        lambda d: d.rename({"2m_temperature": "2t", "geopotential": "z"}),
        lambda d: d.assign({"2m_temperature": in_unit(d["2m_temperature"], "2t", "degC")}),
        lambda d: d.assign(geopotential=in_unit(d["geopotential"], "z", "gpm")),
    ],
    ids=["latitude", "level", "longitude", "axes", "order", "short names", "celsius", "metres"],
)
def test_conventions_do_not_matter(extracted, changed):
    expected = content(extracted(waves(STEPS)))
    assert same(expected, content(extracted(changed(waves(STEPS)), "other.nc")))


def in_unit(variable, name, unit):
    factor, offset = conversion(unit, SI[name])
    return variable.copy(data=(variable.values - offset) / factor).assign_attrs(units=unit)


def test_zarr_and_csv_are_read_alike(extracted, tmp_path):
    data = waves(STEPS, rows=8, columns=16)
    expected = content(extracted(data))
    assert same(expected, content(extracted(data, "weather.zarr")))
    raw = tmp_path / "csv"
    raw.mkdir()
    axes = {"latitude": "lat", "longitude": "lon"}
    surface = data[["2m_temperature", "mean_sea_level_pressure"]].to_dataframe().reset_index()
    air = data[["geopotential", "u_component_of_wind"]].to_dataframe().reset_index()
    table = pd.concat([surface, air]).rename(columns=axes)
    table.to_csv(raw / "a.csv", index=False)
    static = data[["land_sea_mask"]].to_dataframe().reset_index().rename(columns=axes)
    static.to_csv(raw / "static.csv", index=False)
    extract_weather(raw, tmp_path / "csv.h5", CONFIG, SPLIT)
    assert same(expected, content(tmp_path / "csv.h5"))


def test_files_of_a_directory_are_put_in_order_of_time(tmp_path, extracted):
    data = waves(STEPS)
    expected = content(extracted(data))
    raw = tmp_path / "parts"
    raw.mkdir()
    data.isel(time=slice(10, None)).to_netcdf(raw / "a.nc")
    data.isel(time=slice(0, 10)).drop_vars("land_sea_mask").to_netcdf(raw / "b.nc")
    extract_weather(raw, tmp_path / "parts.h5", CONFIG, SPLIT)
    assert same(expected, content(tmp_path / "parts.h5"))


def test_crops_the_last_of_an_odd_number_of_rows(extracted):
    found = content(extracted(waves(STEPS, rows=17)))
    assert found["state"].shape[2:] == (16, 32)
    assert found["latitude"][0] == pytest.approx(84)
    assert found["latitude"][-1] > -84


def test_takes_every_sixth_hour(extracted):
    hourly = waves(STEPS).assign_coords(
        time=np.datetime64("2001-03-01T00", "ns") + np.arange(STEPS) * np.timedelta64(3, "h")
    )
    assert len(content(extracted(hourly))["time"]) == STEPS // 2


def hole(data):
    values = data["geopotential"].values.copy()
    values[7, 1, 3, 4] = np.nan
    return data.assign(geopotential=(data["geopotential"].dims, values))


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (hole, r"geopotential at 2001-03-02T18:00 holds 1 value \(nan\)"),
        (lambda d: d.drop_vars("mean_sea_level_pressure"), "no variable 'mean_sea_level_pressure'"),
        (lambda d: d.isel(time=[0, 1, 2, 4, 5, 6, 7, 8]), "time 2001-03-01T18:00 is missing"),
        (lambda d: d.isel(longitude=slice(0, 20)), "do not go once around"),
        (
            lambda d: d.isel(latitude=[0, 2, 1]),
            "latitudes reach from .* give files of the whole globe",
        ),
        (
            lambda d: d.assign(geopotential=d["geopotential"].assign_attrs(units="hPa")),
            "geopotential is in 'hPa'; expected",
        ),
        (
            lambda d: d.assign(geopotential=d["geopotential"] * 0 + 1.0),
            "z_300, z_500, z_850 is the same everywhere",
        ),
        (lambda d: d.drop_vars("land_sea_mask"), "no variable 'land_sea_mask'"),
        (
            lambda d: d.assign({"2m_temperature": d["geopotential"].assign_attrs(units="K")}),
            "2m_temperature has the axes time, level, latitude, longitude; expected time, latitude",
        ),
    ],
)
def test_names_what_is_wrong(extracted, tmp_path, broken, told):
    with pytest.raises(DataError, match=told):
        extracted(broken(waves(STEPS)))
    assert not (tmp_path / "weather.h5").exists()


def test_names_a_missing_level(extracted):
    config = WeatherConfig(surface=("2t",), air=("z",), static=(), levels=(500, 925))
    with pytest.raises(DataError, match="no level of 925 hPa; it has 300, 500, 850"):
        extracted(waves(STEPS), config=config)


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match="no weather there"):
        extract_weather(tmp_path / "none.nc", tmp_path / "weather.h5", CONFIG, SPLIT)
    (tmp_path / "bad.nc").write_text("text")
    with pytest.raises(DataError, match=r"bad.nc: not readable as nc"):
        extract_weather(tmp_path / "bad.nc", tmp_path / "weather.h5", CONFIG, SPLIT)


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("2t", "degC", [273.65, 280.15, 563.15]),
        ("msl", "hPa", [50.0, 700.0, 29_000.0]),
        ("u", "knots", [0.257222, 3.601111, 149.188889]),
        ("z", "gpm", [4.903325, 68.64655, 2_843.9285]),
        ("q", "g/kg", [0.0005, 0.007, 0.29]),
        ("t", "K", [0.5, 7.0, 290.0]),
    ],
)
def test_values_are_turned_into_si_units(name, unit, expected):
    found = converted(np.array([0.5, 7.0, 290.0]), unit, SI[name], name)
    assert found == pytest.approx(expected)


def test_dataset_gives_windows(weather_samples):
    dataset = WeatherDataset(weather_samples, WeatherWindowConfig(output_steps=2))
    batch = dataset.batch("train", 0, np.array([3, 0]))
    assert batch.past_BTCIJ.shape == (2, 2, 8, 16, 32)
    assert batch.y_BKCIJ.shape == (2, 2, 8, 16, 32)
    with h5py.File(weather_samples) as file:
        state, time = file["state"][()], file["time"][()]
        mean, std = file["stats/mean"][()], file["stats/std"][()]
    start = int(dataset.starts("train")[3])
    expected = (state[start + 2] - mean[:, None, None]) / std[:, None, None]
    assert batch.y_BKCIJ[0, 0].numpy() == pytest.approx(expected, abs=1e-4)
    assert batch.hours_B[0] == time[start + 1] * 24
    assert torch.equal(batch.last_KBV[:, 0, 5], batch.past_BTCIJ[0, -1, 5].flatten())
    train = dataset.core_states(0, np.arange(*dataset.split_ranges[0]))
    assert train.mean().abs() < 1e-3
    assert train.std(dim=(0, 1)).numpy() == pytest.approx(1, abs=0.02)


def test_large_files_are_read_bit_by_bit(weather_samples):
    config = WeatherWindowConfig(output_steps=2)
    whole, lazy = (WeatherDataset(weather_samples, config, cache_bytes=n) for n in (1 << 30, 1))
    for one, other in zip(
        vars(whole.batch("test", 0, np.array([1, 4]))).values(),
        vars(lazy.batch("test", 0, np.array([1, 4]))).values(),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert not lazy.groups_in_memory


def test_forecast_states_replace_the_past(weather_samples):
    dataset = WeatherDataset(weather_samples, WeatherWindowConfig())
    batch, later = dataset.at_times(0, np.array([4])), dataset.at_times(0, np.array([5]))
    states = dataset.core_states(0, np.array([[5, 6]]))
    assert torch.equal(dataset.with_states(batch, states).past_BTCIJ, later.past_BTCIJ)
