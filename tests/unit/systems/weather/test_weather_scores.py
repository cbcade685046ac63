"""Scores of weather with known answers."""

import numpy as np
import pytest
import xarray as xr

from millrace.systems.weather.scores import (
    WeatherScores,
    anomaly_correlation,
    area_mean,
    latitude_weights,
    wave_numbers,
    zonal_spectrum,
)

LATITUDE = np.linspace(87.5, -87.5, 36)
LONGITUDE = np.arange(72) * 5.0


def random_fields(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 36, 72))


def test_weights_are_areas():
    weight = latitude_weights(LATITUDE)
    assert weight.sum() == pytest.approx(36)
    cosine = np.cos(np.deg2rad(LATITUDE))
    assert weight == pytest.approx(cosine / cosine.mean(), rel=1e-3)
    assert latitude_weights(LATITUDE[::-1]) == pytest.approx(weight[::-1])


def test_weights_stop_at_the_pole():
    weight = latitude_weights(np.linspace(90, -90, 37))
    assert weight.sum() == pytest.approx(37)
    assert weight[0] < 0.1 * weight[18]


def test_mean_over_the_sphere():
    weight = latitude_weights(LATITUDE)
    assert area_mean(np.full((36, 72), 7.0), weight) == pytest.approx(7.0)
    sine = np.sin(np.deg2rad(LATITUDE))[:, None] * np.ones(72)
    assert area_mean(sine, weight) == pytest.approx(0, abs=1e-12)
    assert area_mean(sine**2, weight) == pytest.approx(1 / 3, rel=2e-3)


def test_anomaly_correlation_of_known_fields():
    weight = latitude_weights(LATITUDE)
    truth, climatology = random_fields(), random_fields(seed=1)
    assert anomaly_correlation(truth, truth, climatology, weight) == pytest.approx(1)
    mirrored = 2 * climatology - truth
    assert anomaly_correlation(mirrored, truth, climatology, weight) == pytest.approx(-1)
    half = climatology + 0.5 * (truth - climatology)
    assert anomaly_correlation(half, truth, climatology, weight) == pytest.approx(1)
    assert np.isnan(anomaly_correlation(climatology, truth, climatology, weight))


def test_scores_are_those_of_weighted_means_of_xarray():
    """The formulas of WeatherBench 2 for the root mean square error and the anomaly correlation."""
    sizes, climatology = {"start": 3, "lead": 2}, random_fields(1, seed=2)
    scores = WeatherScores(["t"], np.array([6.0, 12.0]), LATITUDE, climatology)
    truth, forecast = random_fields(3, 2, seed=3), random_fields(3, 2, seed=4)
    for y, x in zip(truth, forecast, strict=True):
        scores.add(y[:, None], x[:, None], climatology)
    found = scores.result()["channels"]["t"]
    y, x = (xr.DataArray(a, dims=[*sizes, "latitude", "longitude"]) for a in (truth, forecast))
    y, x = (a.assign_coords(latitude=LATITUDE) for a in (y, x))
    area = np.sin(np.deg2rad(y.latitude + 2.5)) - np.sin(np.deg2rad(y.latitude - 2.5))

    def mean(values, *over):
        return values.weighted(area).mean(["latitude", "longitude", *over])

    np.testing.assert_allclose(
        found["rmse"]["model"], mean((x - y) ** 2, "start") ** 0.5, rtol=1e-12
    )
    one, other = x - climatology[0], y - climatology[0]
    correlation = mean(one * other) / (mean(one**2) * mean(other**2)) ** 0.5
    np.testing.assert_allclose(found["acc"]["model"], correlation.mean("start"), rtol=1e-12)


def test_scores_of_known_forecasts():
    truth = random_fields(2, 3)
    initial, climatology = random_fields(3, seed=1), random_fields(3, seed=2)
    scores = WeatherScores(["t", "u", "z"], np.array([6.0, 12.0]), LATITUDE, climatology)
    offset = np.array([0.5, 0.0, 2.0])[:, None, None]
    scores.add(truth, truth + offset, initial)
    scores.add(truth, truth - offset, initial)
    result = scores.result()
    by_channel = result["channels"]
    assert by_channel["t"]["rmse"]["model"] == pytest.approx([0.5, 0.5])
    assert by_channel["u"]["rmse"]["model"] == pytest.approx([0, 0], abs=1e-12)
    assert by_channel["z"]["bias"] == pytest.approx([0, 0], abs=1e-12)
    weight = latitude_weights(LATITUDE)
    expected = np.sqrt(area_mean((initial[0] - truth[1, 0]) ** 2, weight))
    assert by_channel["t"]["rmse"]["persistence"][1] == pytest.approx(expected)
    assert by_channel["u"]["acc"]["model"] == pytest.approx([1, 1])
    assert by_channel["u"]["skill"] == pytest.approx([1, 1])
    assert result["starts"] == 2


def test_scores_of_a_region_are_of_its_cells_alone():
    truth, initial, climatology = (
        random_fields(1, 2),
        random_fields(2, seed=1),
        random_fields(2, seed=2),
    )
    south = np.broadcast_to(LATITUDE[:, None] < -20, (36, 72))
    scores = WeatherScores(["t", "u"], np.array([6.0]), LATITUDE, climatology, {"south": south})
    scores.add(truth, np.where(south, truth + 3, truth - 1), initial)
    whole, part = scores.result(), scores.result()["regions"]["south"]
    assert part["t"]["rmse"]["model"] == pytest.approx([3])
    assert part["u"]["bias"] == pytest.approx([3])
    weight = latitude_weights(LATITUDE)
    share = weight[LATITUDE < -20].sum() / weight.sum()
    assert whole["channels"]["t"]["bias"] == pytest.approx([4 * share - 1])
    error = (initial[0] - truth[0, 0])[LATITUDE < -20]
    expected = np.sqrt(area_mean(error**2, weight[LATITUDE < -20]))
    assert part["t"]["rmse"]["persistence"] == pytest.approx([expected], rel=1e-5)
    one, other, usual = (
        field[0, 0, LATITUDE < -20] for field in (truth + 3, truth, climatology[None])
    )
    correlation = anomaly_correlation(one, other, usual, weight[LATITUDE < -20])
    assert part["t"]["acc"]["model"] == pytest.approx([float(correlation)], rel=1e-5)


def test_spectrum_of_a_wave():
    wave = 3 * np.cos(np.deg2rad(4 * LONGITUDE)) * np.ones((36, 1))
    power = zonal_spectrum(wave, LATITUDE, LONGITUDE)
    assert wave_numbers(LONGITUDE)[4] == 4
    assert power[4] == pytest.approx(4.5)
    assert np.delete(power, 4) == pytest.approx(0, abs=1e-12)


def test_spectrum_adds_up_to_the_mean_square():
    field = random_fields()
    rows = np.abs(LATITUDE) <= 60
    weight = np.cos(np.deg2rad(LATITUDE[rows]))
    mean_square = ((field[rows] ** 2).mean(axis=1) * weight).sum() / weight.sum()
    assert zonal_spectrum(field, LATITUDE, LONGITUDE).sum() == pytest.approx(mean_square)
    area = (LATITUDE, LONGITUDE / 2)
    assert zonal_spectrum(field, *area).sum() == pytest.approx(mean_square)


def test_spectrum_of_an_area_has_waves_of_the_globe():
    longitude = -30 + 0.5 * np.arange(120)
    wave = np.cos(np.deg2rad(24 * (longitude - longitude[0] + 0.25))) * np.ones((36, 1))
    power, number = zonal_spectrum(wave, LATITUDE, longitude), wave_numbers(longitude)
    assert number[np.argmax(power)] == pytest.approx(24)
    assert power.max() == pytest.approx(0.5)
    # A slope is no wave that jumps from east to west.
    slope = np.linspace(0, 1, 120) * np.ones((36, 1))
    assert zonal_spectrum(slope, LATITUDE, longitude)[20:].sum() < 1e-4


def test_spectrum_of_rows_near_a_pole_is_that_of_these():
    field = np.cos(np.deg2rad(3 * LONGITUDE)) * np.ones((3, 1))
    power = zonal_spectrum(field, np.array([88.0, 80.0, 72.0]), LONGITUDE)
    assert power[3] == pytest.approx(0.5)
