"""Members are spread as validation data ask for: a known factor is found, and no other data may say it."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm

from millrace.errors import ConfigError
from millrace.evaluation.application import Piece
from millrace.evaluation.calibration import Calibration, read_calibration
from millrace.evaluation.forecast_scores import ForecastScores
from millrace.evaluation.predict import main, predict_files
from millrace.sealed import write_sealed

MEMBERS = 6
TOO_SMALL = np.array([1.0, 2.0, 5.0])
"""How much too small the spread is, by step ahead."""


def gaussian(seed, leads=True, windows=400, cells=50):
    """Pieces whose truth is drawn from a normal distribution, and members from one that is too narrow."""
    random = np.random.default_rng(seed)
    steps = len(TOO_SMALL) if leads else 1
    narrow = TOO_SMALL[:, None] if leads else 4.0
    for first in range(0, windows, 100):
        signal = 3 * random.normal(size=(100, 1, steps, cells))
        truth = signal[:, 0] + 2 * random.normal(size=(100, steps, cells))
        drawn = signal + 2 * random.normal(size=(100, MEMBERS, steps, cells)) / narrow
        axes = ("time", *(["lead_time"] if leads else []), "cell")
        if not leads:
            truth, drawn = truth[:, 0], drawn[:, :, 0]
        time = {"time": np.arange(first, first + 100.0)}
        yield Piece(
            xr.Dataset({"t": (("time", "member", *axes[1:]), drawn)}, time),
            xr.Dataset({"t": (axes, truth)}, time),
        )


def scores_of(pieces, change=lambda forecast: forecast):
    scores = ForecastScores()
    for piece in pieces:
        scores.add(Piece(change(piece.forecast), piece.truth))
    return scores.result()["t"]


@pytest.mark.parametrize("leads", [True, False])
def test_a_known_factor_is_found_and_makes_members_fair(leads, tmp_path):
    found = scores_of(gaussian(0, leads))
    # The mean of M narrow members errs by 4 + 4 / (M f²), so that what is wanted is a little less than f.
    f = TOO_SMALL if leads else np.array([4.0])
    exact = np.sqrt((1 + 1 / (MEMBERS * f**2)) / (1 + 1 / MEMBERS)) * f
    np.testing.assert_allclose(found["spread_factor"], exact, rtol=0.02)
    assert found["spread_skill"] < 0.8
    calibrate = Calibration(tmp_path, {"t": found["spread_factor"]})
    after = scores_of(gaussian(1, leads), calibrate)  # other data
    before = scores_of(gaussian(1, leads))
    assert after["spread_skill"] == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(after["spread_factor"], 1, rtol=0.04)
    assert after["rmse"] == pytest.approx(before["rmse"], rel=1e-9)
    assert after["crps"] < before["crps"]
    if not leads:
        # Closed form (Gneiting & Raftery 2007, eq. 21) of N(m, s²) for a truth with variance 4 + v about m.
        v = 4 / (MEMBERS * 16)
        s = np.sqrt((4 + v) / (1 + 1 / MEMBERS))
        z = np.sqrt(4 + v) * norm.ppf((np.arange(4000) + 0.5) / 4000) / s
        exact = s * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi)).mean()
        assert after["crps"] == pytest.approx(exact, rel=0.1)


def test_forecasts_of_fewer_steps_take_the_first_factors(tmp_path):
    calibrate = Calibration(tmp_path, {"t": [1.0, 2.0]})
    forecast = next(gaussian(0)).forecast
    made = calibrate(forecast.isel(lead_time=slice(1)))
    np.testing.assert_allclose(made["t"], forecast["t"][:, :, :1])
    with pytest.raises(ConfigError, match=r"2 factors of 't', .* the forecasts have 3 steps"):
        calibrate(forecast)
    with pytest.raises(ConfigError, match="there are no members of 't'"):
        calibrate(forecast.mean("member"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"calibration": "of before"}, "is of members that were calibrated already"),
        ({"options": {"times": "validation", "members": 5}}, "members = 5, these have 3"),
        ({"schema": "millrace.prediction_metrics/1"}, "holds no scores of forecasts"),
    ],
)
def test_scores_of_other_members_calibrate_nothing(changed, said, tmp_path):
    record = {
        "schema": "millrace.prediction_metrics/2",
        "options": {"times": "validation", "members": 3},
        "run_hash": "a, b",
        "epoch": "4, 4",
        "variables": {"t": {"spread_factor": [2.0]}},
    }
    write_sealed(tmp_path / "scores.json", record | changed)
    application = SimpleNamespace(spreads=True, of_spread=())
    models = [
        SimpleNamespace(application=application, about={"run_hash": one, "epoch": "4"})
        for one in "ab"
    ]
    given = (tmp_path / "scores.json", models, SimpleNamespace(members=3))
    if said is None:
        assert read_calibration(*given).factors == {"t": [2.0]}
        return
    with pytest.raises(ConfigError, match=said):
        read_calibration(*given)


@pytest.mark.slow  # rollouts from a score of states, three times
def test_perturbed_weather_is_calibrated_on_its_validation_period(
    saved, weather_samples, tmp_path, capsys
):
    path, *_ = saved("aurora")
    common = ["--checkpoint", str(path), "--source", str(weather_samples.parent / "weather.nc")]
    common += ["--format", "weather", "--members", "3", "--perturb", "0.1", "--device", "cpu"]
    common += ["--days", "0.5", "--output"]
    fitted, of_test = tmp_path / "fitted.json", tmp_path / "test.json"
    plain, given = (str(tmp_path / f"{name}.nc") for name in ("plain", "given"))
    validation = ["--times", "validation", "--stride", "3", "--metrics", str(fitted)]
    assert main([*common, str(tmp_path / "v.nc"), *validation]) == 0
    later = ["--times", "test", "--limit", "3", "--metrics", str(of_test)]
    assert main([*common, plain, *later]) == 0
    assert main([*common, given, *later, "--calibration", str(fitted)]) == 0
    assert "spread / error" in (said := capsys.readouterr().out)
    assert "before calibration" in said
    factors = {
        k: v["spread_factor"] for k, v in json.loads(fitted.read_text())["variables"].items()
    }
    with xr.open_dataset(plain) as one, xr.open_dataset(given) as other:
        assert json.loads(other.attrs["calibration_factors"]) == factors
        assert "validation period" in other.attrs["calibration"]
        for name in ("t2m", "z"):
            spread = [float(x[name].astype(float).std("member")[:, 1].mean()) for x in (one, other)]
            assert spread[1] / spread[0] == pytest.approx(factors[name][1], rel=1e-3)
            means = [x[name].astype(float).mean("member") for x in (one, other)]
            np.testing.assert_allclose(*means, rtol=1e-6)
    told = json.loads(of_test.read_text())["variables"]["t2m"]
    assert told["uncalibrated"]["spread_skill"] != told["spread_skill"]
    for extra, said in (
        (["--calibration", str(of_test)], "is of test, which may hold training or test data"),
        (["--calibration", str(fitted), "--perturb", "0.2"], "perturb = 0.1, these have 0.2"),
        (["--calibration", str(fitted), "--days", "1"], "2 factors of .* have 4 steps"),
    ):
        assert main([*common, str(tmp_path / "no.nc"), "--limit", "1", *extra]) == 2
        error = capsys.readouterr().err
        assert re.search(said, error), error
    assert not (tmp_path / "no.nc").exists()


def test_traffic_is_calibrated_by_its_temperature(saved, motion_tracks, tmp_path):
    path, *_ = saved("smart")
    fitted = {"value": 0.25, "log_loss": 2.0, "calibrated_log_loss": 1.9}
    record = {
        "schema": "millrace.metrics/1",
        "experiment": "smart_traffic",
        "identity": "a run",
        "epoch": 0,
        "validation": {"motion": {"temperature": fitted}},
    }
    write_sealed(tmp_path / "metrics.json", record)
    options, common = {"limit": 2, "members": 2}, {"raw": "tracks", "device": "cpu"}
    made = {}
    for name, more, given in (
        ("given", {}, tmp_path / "metrics.json"),
        ("asked", {"temperature": 0.25}, None),
    ):
        output = tmp_path / f"{name}.nc"
        result = predict_files(
            path, motion_tracks, output, options=options | more, calibration=given, **common
        )
        assert result["options"]["temperature"] == 0.25
        made[name] = xr.load_dataset(output)
    np.testing.assert_array_equal(made["given"]["x"], made["asked"]["x"])
    assert made["given"].attrs["calibration_options"] == '{"temperature": 0.25}'
    for changed, said in (
        ({"epoch": 3}, "is of smart_traffic at epoch 3; give exactly"),
        ({"validation": {"motion": {}}}, "evaluate the run with this version"),
        ({"schema": "millrace.prediction_metrics/2"}, "cannot be spread about their mean"),
        ({"schema": "other"}, "holds no scores of forecasts"),
    ):
        write_sealed(tmp_path / "metrics.json", record | changed)
        with pytest.raises(ConfigError, match=said):
            predict_files(
                path,
                motion_tracks,
                tmp_path / "no.nc",
                options=options,
                calibration=tmp_path / "metrics.json",
                **common,
            )
