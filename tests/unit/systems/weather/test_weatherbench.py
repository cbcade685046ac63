"""Scores, climatology and forecasts are what WeatherBench 2 makes of the same files."""

import numpy as np
import pytest
import xarray as xr
from travelling_waves import waves

from millrace.data.split import SplitConfig
from millrace.evaluation.predict import predict_files
from millrace.systems.weather.climatology import Climatology
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.extract import WeatherConfig, extract_weather
from millrace.systems.weather.regions import REGIONS, cells_of_regions
from millrace.systems.weather.settings import WeatherWindowConfig
from millrace.systems.weather.weatherbench import main

HOURS = np.array([0, 12])


@pytest.fixture(scope="module")
def three_years(tmp_path_factory):
    """Samples of every twelve hours from 2003 to 2005, of which 2003, 2004 and ten days are trained on."""
    folder = tmp_path_factory.mktemp("years")
    steps = 2 * (365 + 366 + 365)
    raw = waves(steps, rows=4, columns=8, levels=(500.0,))
    raw["time"] = np.datetime64("2003-01-01T00", "ns") + np.arange(steps) * np.timedelta64(12, "h")
    season = 10 * np.cos(2 * np.pi * raw.time.dt.dayofyear / 365.25) * (1 + raw.time.dt.hour)
    raw["2m_temperature"] = (raw["2m_temperature"] + season).assign_attrs(units="K")
    raw.to_netcdf(folder / "weather.nc")
    config = WeatherConfig(surface=("2t",), air=("z",), static=(), hours=12)
    train = 2 * (365 + 366 + 10) / steps
    split = SplitConfig(train=train, validation=0.1, gap=3)
    extract_weather(folder / "weather.nc", folder / "weather.h5", config, split)
    return folder / "weather.h5", raw


def climatology_of_weatherbench(field, hours):
    """`compute_hourly_stat` of `weatherbench2.utils`: stacked years, and a rolling weighted mean."""
    half = 30
    weights = xr.DataArray(
        np.r_[np.linspace(0, 1, half + 1), np.linspace(1, 0, half + 1)[1:]], dims="window"
    )
    made = []
    for hour in hours:
        at_hour = field.isel(time=field.time.dt.hour == hour)
        years = [one for _, one in at_hour.groupby("time.year")]
        days = [one.assign_coords(time=one.time.dt.dayofyear) for one in years]
        stacked = xr.concat([one.rename(time="dayofyear") for one in days], "year", join="outer")
        stacked = stacked.fillna(stacked.sel(dayofyear=365))
        padded = stacked.pad(dayofyear=half, mode="wrap")
        windows = padded.rolling(dayofyear=2 * half + 1, center=True).construct("window")
        mean = windows.weighted(weights).mean(("window", "year"))
        made.append(mean.isel(dayofyear=slice(half, -half)))
    return xr.concat(made, xr.DataArray(hours, dims="hour", name="hour"))


def test_climatology_is_that_of_weatherbench(three_years):
    path, raw = three_years
    dataset = WeatherDataset(path, WeatherWindowConfig())
    begin, end = dataset.split_ranges[0]
    expected = climatology_of_weatherbench(raw["2m_temperature"][begin:end].load(), HOURS)
    asked = ["2003-01-01T00", "2004-02-29T12", "2004-12-31T00", "2005-12-31T12", "2005-07-01T00"]
    times = np.array(asked, dtype="M8[h]").astype(np.int64) / 24
    climatology = Climatology(dataset, times)
    assert climatology.by_day
    found = climatology.at(times)[:, 0]
    days, rows = np.array([1, 60, 366, 365, 182]), slice(None, None, -1)
    for field, day, hour in zip(found, days, [0, 12, 0, 12, 0], strict=True):
        reference = expected.sel(dayofyear=day, hour=hour).values[rows]
        np.testing.assert_allclose(field, reference, rtol=1e-6)
    # Not in the order that was announced, and a state at a time.
    few = Climatology(dataset, times, memory=1)
    np.testing.assert_array_equal(few.at(times[::-1])[:, 0], found[::-1])


def test_a_short_training_period_has_a_plain_mean(weather_samples):
    dataset = WeatherDataset(weather_samples, WeatherWindowConfig())
    climatology = Climatology(dataset, dataset.time)
    assert not climatology.by_day
    assert "does not hold each day of the year" in climatology.about
    for field in climatology.at(dataset.time[:2]):
        np.testing.assert_array_equal(field, dataset.climatology())


def test_regions_are_slices_of_latitude_and_longitude():
    latitude, longitude = np.linspace(90, -90, 37)[:-1], np.arange(0, 360, 2.5)
    found = cells_of_regions(latitude, longitude)
    assert set(found) == set(REGIONS)
    cells = xr.DataArray(
        np.arange(36 * 144).reshape(36, 144),
        {"latitude": latitude, "longitude": longitude},
        ("latitude", "longitude"),
    ).sortby("latitude")
    west, east = (cells.sel(latitude=slice(35, 75), longitude=s) for s in EUROPE)
    expected = {
        "europe": xr.concat([west, east], "longitude"),
        "tropics": cells.sel(latitude=slice(-20, 20)),
        "southern-hemisphere": cells.sel(latitude=slice(None, -20)),
        "north-pacific": cells.sel(latitude=slice(25, 60), longitude=slice(145, 360 - 130)),
    }
    for name, part in expected.items():
        assert set(np.flatnonzero(found[name])) == set(part.values.ravel().tolist())
    assert cells_of_regions(latitude, np.arange(-20, 40, 2.5)) == {}


EUROPE = (slice(360 - 12.5, None), slice(0, 42.5))


def test_scores_of_all_starts_are_those_that_weatherbench_makes_of_the_forecasts(
    saved, weather_samples, tmp_path, capsys
):
    """Its reader opens both files, and its formulas on the forecasts give the scores."""
    checkpoint, trained, _ = saved("aurora")
    scores = tmp_path / "scores"
    given = ["--checkpoint", str(checkpoint), "--samples", str(weather_samples)]
    assert main([*given, "--output", str(scores), "--days", "1", "--stride", "4"]) == 0
    assert "model_deterministic.nc" in capsys.readouterr().out
    with xr.open_dataset(weather_samples.parent / "weather.nc") as file:
        observed = file.load().sortby("latitude")
    train, test = (slice(*trained.dataset.split_ranges[n]) for n in (0, 2))
    raw = tmp_path / "raw/weather.nc"
    raw.parent.mkdir()
    observed.isel(time=test).to_netcdf(raw)
    options = {"days": 1, "stride": 4, "names": "weatherbench2"}
    predict_files(
        checkpoint, raw, tmp_path / "forecast.zarr", raw="weather", options=options, device="cpu"
    )
    forecast = xr.open_zarr(tmp_path / "forecast.zarr", chunks=None).load().sortby("latitude")
    # `apply_time_conventions` of `weatherbench2.schema`, by_init.
    forecast = forecast.rename(prediction_timedelta="lead_time", time="init_time")
    # Of 16 steps two are given and four are forecast at a time.
    assert (np.diff(forecast.init_time) == np.timedelta64(24, "h")).all()
    forecast = forecast.sel(init_time=forecast.init_time <= observed.time[-5])
    forecast.coords["valid_time"] = forecast.init_time + forecast.lead_time
    truth = observed.sel(time=forecast.valid_time)
    usual_state = observed.isel(time=train).mean("time")
    bounds = np.deg2rad(forecast.latitude.values)
    bounds = np.r_[-np.pi / 2, (bounds[1:] + bounds[:-1]) / 2, np.pi / 2]
    weights = forecast.latitude.copy(data=np.diff(np.sin(bounds)))

    def mean(fields, region):
        part = fields.sel(latitude=slice(*LATITUDES[region]))
        return part.weighted(weights.sel(latitude=part.latitude)).mean(["latitude", "longitude"])

    with xr.open_dataset(scores / "model_deterministic.nc", decode_timedelta=True) as file:
        found = file.load()
    assert file.attrs["starts"] == forecast.sizes["init_time"] == 3
    assert found["geopotential"].dims == ("metric", "region", "lead_time", "level")
    assert found["2m_temperature"].dims == ("metric", "region", "lead_time")
    np.testing.assert_array_equal(found.lead_time, np.arange(6, 25, 6) * np.timedelta64(1, "h"))
    for name in (
        "geopotential",
        "2m_temperature",
        "u_component_of_wind",
        "mean_sea_level_pressure",
    ):
        one, other = (data[name].astype(np.float64) for data in (forecast, truth))
        usual = usual_state[name]
        for region in LATITUDES:
            anomaly = mean((one - usual) * (other - usual), region)
            norm = mean((one - usual) ** 2, region) * mean((other - usual) ** 2, region)
            expected = {
                "mse": mean((one - other) ** 2, region).mean("init_time"),
                "mae": mean(abs(one - other), region).mean("init_time"),
                "bias": mean(one - other, region).mean("init_time"),
                "acc": (anomaly / norm**0.5).mean("init_time"),
            }
            for metric, value in expected.items():
                got = found[name].sel(metric=metric, region=region)
                scale = float(abs(value).max())
                np.testing.assert_allclose(
                    got, value.transpose(*got.dims), rtol=2e-6, atol=2e-6 * scale
                )


LATITUDES = {"global": (None, None), "tropics": (-20, 20), "northern-hemisphere": (20, None)}


def test_what_cannot_be_scored_is_refused(saved, block_samples, three_years, tmp_path, capsys):
    output = ["--output", str(tmp_path / "scores"), "--device", "cpu"]

    def refused(checkpoint, samples, *others):
        given = ["--checkpoint", str(checkpoint), "--samples", str(samples), *output, *others]
        assert main(given) != 0
        return capsys.readouterr().err

    checkpoint, _, _ = saved("aurora")
    told = refused(checkpoint, three_years[0])
    assert "channels is not that of the training; give the samples of it" in told
    assert "expected a positive length, and 1 or more" in refused(checkpoint, "", "--stride", "0")
    checkpoint = checkpoint.rename(tmp_path / "aurora.ckpt")
    (tmp_path / "alone").rmdir()
    other, _, _ = saved("regression")
    assert "forecasts blocks; expected a model of weather" in refused(other, block_samples)
    assert not (tmp_path / "scores").exists()
