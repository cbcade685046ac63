"""Some forecasts of many: a period, scenarios, the first ones; they are those of all."""

import json

import numpy as np
import pytest
import xarray as xr
import yaml
from array_fields import series

from millrace.data.joint import JointDataset
from millrace.data.recipe import recipe_of
from millrace.errors import ConfigError, DataError
from millrace.evaluation.application import SeriesForecasts, window_starts
from millrace.evaluation.loaded import load
from millrace.evaluation.predict import main
from millrace.evaluation.selection import Period, period_of

RECIPE = {"periods": {"train": [0.0, 9.0], "validation": [10.0, 14.0], "test": [16.0, 19.0]}}
WINDOW = (2, 3)
DAY = np.datetime64("2020-01-01")


@pytest.mark.parametrize(
    ("times", "held"),
    [
        ("2020-01-31", ["2020-01-31T00", "2020-01-31T18"]),
        ("2020-01-31T06..", ["2020-01-31T18", "2020-02-01T00", "2021-01-01T00"]),
        ("2020-01", ["2020-01-31T00", "2020-01-31T18"]),
        ("..2020-02", ["2020-01-31T00", "2020-01-31T18", "2020-02-01T00"]),
        ("2020-01-31 18:00:00 .. 2020-02-01T00Z", ["2020-01-31T18", "2020-02-01T00"]),
        ("2021", ["2021-01-01T00"]),
    ],
)
def test_dates_stand_for_all_of_themselves(times, held):
    moments = ["2020-01-31T00", "2020-01-31T18", "2020-02-01T00", "2021-01-01T00"]
    days = (np.array(moments, "M8[s]") - np.datetime64(0, "s")) / np.timedelta64(1, "D")
    days = days - 1e-10  # days are not exact
    found = period_of(times, {}, is_date=True).holds(days, days)
    assert np.array(moments)[found].tolist() == held


def test_numbers_are_both_ends():
    time = np.array([0.476, 0.952, 1.428, 1.904])
    for times, held in (("0.952..1.428", 2), ("1.428..", 2), ("0.952", 1), ("..1e3", 4)):
        assert period_of(times, {}, is_date=False).holds(time, time).sum() == held


def test_a_number_is_one_of_many_times_that_lie_close():
    minutes = 26_297_280.0 + 5 * np.arange(20)
    found = period_of("26297300", {"time_step": 5.0}, is_date=False).holds(minutes, minutes)
    assert minutes[found].tolist() == [26_297_300.0]


def test_yaml_may_take_times_for_numbers_or_dates():
    given = yaml.safe_load("[2020, 1.5, 2020-01-31]")
    found = [SeriesForecasts.parse({"times": one}, "predict").times for one in given]
    assert found == ["2020", "1.5", "2020-01-31"]


def test_a_series_without_any_forecast_is_refused():
    chosen = SeriesForecasts.parse({"limit": 2}, "predict")
    with pytest.raises(DataError, match="5 times with states and 3 times after them"):
        window_starts(5, np.arange(8.0), (2, 5), chosen, Period())


def test_periods_of_several_datasets_are_not_those_of_the_first(of_arrays):
    _, trained = of_arrays(series(), input_steps=2, output_steps=2)
    both = JointDataset.__new__(JointDataset)
    both.datasets = [trained.dataset, trained.dataset]
    definition = {"data": {}, "model": {}}
    assert "periods" in recipe_of("mine", definition, trained.dataset)
    assert "periods" not in recipe_of("mine", definition, both)


@pytest.mark.parametrize(
    ("times", "is_date", "said"),
    [
        ("2020-13", True, "'2020-13' is no date; expected such as 2020-01-31"),
        ("now", True, "'now' is no date"),
        ("12", True, "'12' is no date"),
        ("2020-02..2020-01", True, "the earlier one first"),
        ("..", True, "expected FIRST..LAST"),
        ("2020-01", False, "'2020-01' is no number"),
        ("nan..", False, "'nan' is no number"),
        ("validation", False, "does not say which period that was"),
    ],
)
def test_what_is_no_time_is_said(times, is_date, said):
    with pytest.raises(ConfigError, match=f"times .*{said}"):
        period_of(times, {}, is_date)


@pytest.mark.parametrize(
    ("options", "starts", "n_true"),
    [
        ({}, [18], 0),
        ({"every": True}, [0, 3, 6, 9, 12, 15, 18], 6),
        ({"limit": 2}, [0, 3], 2),
        ({"limit": 9, "stride": 5}, [0, 5, 10, 15, 18], 4),
        ({"times": "4..9"}, [3, 6], 2),
        ({"times": "4..9", "stride": 1, "limit": 4}, [3, 4, 5, 6], 4),
        ({"times": "17.."}, [16], 0),  # of which one step is known
        ({"times": "13..19", "stride": 2}, [12, 14, 16, 18], 2),
        ({"times": "validation", "stride": 1}, [10], 1),
    ],
)
def test_starts_of_a_series(options, starts, n_true):
    chosen = SeriesForecasts.parse(options, "predict")
    period, time = period_of(chosen.times, RECIPE, is_date=False), np.arange(23.0)
    found = window_starts(20, time, WINDOW, chosen, period)
    assert (found[0].tolist(), found[1]) == (starts, n_true)


def test_no_forecast_of_a_period_says_which_there_are():
    chosen = SeriesForecasts(times="30..40")
    with pytest.raises(ConfigError, match=r"times 30\.\.40: .* possible from 19 times, 1 to 19"):
        window_starts(20, np.arange(23.0), WINDOW, chosen, period_of("30..40", {}, False))
    said = str(Period(name="2031").nothing(np.array([18262.25, 18263.0]), True))
    assert "2 times, 2020-01-01T06:00 to 2020-01-02T00:00" in said


def test_samples_of_arrays_say_their_periods(of_arrays):
    model, trained = of_arrays(series(), input_steps=2, output_steps=2)
    time, samples = trained.dataset.time, series()
    begin, end = trained.dataset.split_ranges[1]
    assert model.recipe["periods"]["validation"] == [time[begin], time[end - 1]]
    states = xr.Dataset(
        {k: (("time", "x"), v) for k, (v, _) in {**samples.inputs, **samples.targets}.items()},
        {"time": samples.time[0]},
    )
    made = model.predict(states, times="validation", stride=1)
    np.testing.assert_array_equal(
        made["issue_time"], time[trained.dataset.starts("validation") + 1]
    )
    assert made["valid_time"].max() <= time[end - 1]


def test_some_times_of_a_downscaler_are_as_among_all(saved, block_samples):
    model, raw = load(saved("downscaler")[0], device="cpu"), block_samples.parent / "raw"
    options = {"members": 2, "steps": 2}
    first = model.predict(raw, limit=5, **options)
    some = model.predict(raw, times="2020-01-01T12..", stride=2, limit=2, **options)
    assert some["time"].values.tolist() == first["time"].values[2::2].tolist()
    np.testing.assert_array_equal(some["tas"], first["tas"][2::2])


def test_files_say_what_was_selected(saved, block_samples, tmp_path, capsys):
    path, *_ = saved("regression")
    given = ["--checkpoint", str(path), "--source", str(block_samples.parent / "raw")]
    given += ["--device", "cpu", "--output"]
    assert main([*given, str(tmp_path / "some.nc"), "--limit", "2", "--times", "2020-01-02.."]) == 0
    said = capsys.readouterr()
    assert "2/2 forecasts" in said.err
    assert "some.nc: 2 forecasts" in said.out
    with xr.open_dataset(tmp_path / "some.nc") as file:
        assert file["time"].values[0] == np.datetime64("2020-01-02")
        options = json.loads(file.attrs["options"])
        assert (options["limit"], options["times"]) == (file.sizes["time"], "2020-01-02..")
        assert "--limit 2 --times 2020-01-02.." in file.attrs["history"]
    assert main([*given, str(tmp_path / "none.nc"), "--times", "1999"]) == 2
    assert "possible from 24 times, 2020-01-01T00:00 to" in capsys.readouterr().err
    assert not (tmp_path / "none.nc").exists()


def test_some_forecasts_of_the_weather_are_as_among_all(saved, weather_samples):
    model = load(saved("aurora")[0], device="cpu")
    raw, options = (
        weather_samples.parent / "weather.nc",
        {"days": 0.5, "members": 2, "perturb": 0.1},
    )
    first = model.predict(raw, limit=4, **options)
    days = first["issue_time"].values[2:]
    dates = (DAY + ((days - 18262) * 24).round().astype("m8[h]")).astype(str)
    some = model.predict(raw, times=f"{dates[0]}..{dates[1]}", **options)
    assert some["issue_time"].values.tolist() == days.tolist()
    for name in ("t2m", "z"):
        np.testing.assert_array_equal(some[name], first[name][2:])
    with pytest.raises(ConfigError, match="raw files hold their own"):
        model.predict(raw, first)


def test_scenarios_are_chosen_by_name(saved, motion_tracks):
    model, options = (
        load(saved("smart")[0], device="cpu"),
        {"members": 1, "top_k": 1, "seconds": 1.0},
    )
    every = model.predict(motion_tracks, **options)
    names = every["scenario_name"].values.tolist()
    chosen = [names[7], names[2]]
    some = model.predict(motion_tracks, scenarios=chosen, **options)
    assert some["scenario_name"].values.tolist() == [names[2], names[7]]
    agents = some.sizes["agent"]
    np.testing.assert_allclose(some["x"], every["x"][[2, 7], :, :agents], atol=1e-4)
    assert (
        model.predict(motion_tracks, limit=3, **options)["scenario_name"].values.tolist()
        == names[:3]
    )
    with pytest.raises(
        ConfigError, match=f"no scenario '{names[0]}x' in .*; did you mean '{names[0]}'"
    ):
        model.predict(motion_tracks, scenarios=[f"{names[0]}x"])
