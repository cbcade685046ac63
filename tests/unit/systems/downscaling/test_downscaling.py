"""Scores of downscaling against closed forms."""

import json

import numpy as np
import pytest
from scipy.special import sph_harm_y

from millrace.systems.downscaling.baselines import (
    LinearRegression,
    block_mean_copy,
    interpolation,
)
from millrace.systems.downscaling.ensembles import evaluate
from millrace.systems.downscaling.scores import DownscalingScores, Sphere, energy_score, fair_crps
from millrace.systems.downscaling.simulator.icosphere import Icosphere
from millrace.systems.downscaling.spectrum import power_spectrum
from millrace.systems.downscaling.triangles import barycentric

GRID = Icosphere.build(3)
CELLS, BLOCKS = 5120, 80


@pytest.fixture
def sphere():
    land = GRID.centres_N3[:, 0] > 0
    return Sphere(GRID.centres_N3, GRID.area_N, GRID.neighbours_N3, BLOCKS, land.astype(float))


def normal_case(rng, members=10, spread=1.0):
    """Truth and members exchangeable about a predictable mean, if ``spread`` is 1."""
    mean = 10 * GRID.centres_N3[:, 2]
    truth = mean + rng.standard_normal(CELLS)
    return truth, mean + spread * rng.standard_normal((members, CELLS))


def test_fair_crps_of_a_normal_ensemble():
    truth, ensemble = normal_case(np.random.default_rng(0))
    assert fair_crps(truth, ensemble).mean() == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)
    assert fair_crps(truth, ensemble[:3]).mean() == pytest.approx(1 / np.sqrt(np.pi), abs=0.03)
    assert fair_crps(truth, ensemble[:1]) == pytest.approx(np.abs(ensemble[0] - truth))


def test_energy_score_of_one_component_is_the_crps():
    truth, ensemble = normal_case(np.random.default_rng(1), members=5)
    assert energy_score(truth, ensemble, CELLS) == pytest.approx(fair_crps(truth, ensemble))


def test_scores_of_large_grids_are_made_in_parts(monkeypatch):
    truth, ensemble = normal_case(np.random.default_rng(7), members=4)
    at_once = fair_crps(truth, ensemble), energy_score(truth, ensemble, BLOCKS)
    assert [len(one) for one in at_once] == [CELLS, BLOCKS]
    monkeypatch.setattr("millrace.systems.downscaling.scores.AT_ONCE", 200)
    in_parts = fair_crps(truth, ensemble), energy_score(truth, ensemble, BLOCKS)
    for one, other in zip(at_once, in_parts, strict=True):
        assert np.array_equal(one, other)


def block_means_of(field):
    area = GRID.area_N.reshape(BLOCKS, -1)
    return (field.reshape(BLOCKS, -1) * area).sum(1) / area.sum(1)


def test_a_calibrated_ensemble(sphere):
    rng, scores = np.random.default_rng(2), DownscalingScores(sphere, std=1.0)
    for _ in range(5):
        truth, ensemble = normal_case(rng)
        scores.update(truth, ensemble, block_means_of(truth))
    result = scores.result()
    assert result["spread_skill"] == pytest.approx(1, abs=0.02)
    assert result["rmse"] == pytest.approx(np.sqrt(1.1), rel=0.02)
    assert result["bias"] == pytest.approx(0, abs=0.02)
    assert result["rank_histogram"] == pytest.approx(np.full(11, 1 / 11), abs=0.01)
    assert result["seam_error"] == pytest.approx(1, abs=0.02)
    assert result["seam_jump"] == pytest.approx(1, abs=0.02)
    assert result["quantile_error"] < 0.05
    assert result["conservation"] > 0.01
    assert result["times"] == 5
    json.dumps(result, allow_nan=False)


def test_regions_differ_where_errors_do(sphere):
    truth, ensemble = normal_case(np.random.default_rng(3))
    ensemble = ensemble + 2.0 * (sphere.land_N > 0)
    scores = DownscalingScores(sphere, std=1.0)
    scores.update(truth, ensemble, block_means_of(truth))
    regions = scores.result()["regions"]
    assert regions["land"]["bias"] == pytest.approx(2, abs=0.1)
    assert regions["sea"]["bias"] == pytest.approx(0, abs=0.1)
    assert set(regions) >= {"north", "tropics", "south", "seams", "interior"}


def test_too_little_spread_shows(sphere):
    truth, ensemble = normal_case(np.random.default_rng(4), spread=0.5)
    scores = DownscalingScores(sphere, std=1.0)
    scores.update(truth, ensemble, block_means_of(truth))
    result = scores.result()
    assert result["spread_skill"] < 0.6
    assert result["rank_histogram"][0] > 0.15


def test_steps_at_seams_show(sphere):
    rng = np.random.default_rng(5)
    truth = 10 * GRID.centres_N3[:, 2]
    steps = np.repeat(rng.standard_normal(BLOCKS), CELLS // BLOCKS)
    noise = 0.1 * rng.standard_normal(CELLS)
    scores = DownscalingScores(sphere, std=1.0)
    scores.update(truth, (truth + steps + noise)[None], block_means_of(truth))
    result = scores.result()
    assert result["seam_error"] > 5
    assert result["seam_jump"] > 1.5
    across = sphere.is_seam_N.reshape(BLOCKS, -1).sum(axis=1)
    assert (across == 3 * 8 - 3).all(), "cells at the edges of a triangle with 8 to a side"


def test_spectrum_of_one_harmonic_is_one_line():
    lon = np.arctan2(GRID.centres_N3[:, 1], GRID.centres_N3[:, 0])
    colatitude = np.arccos(GRID.centres_N3[:, 2])
    field = sph_harm_y(5, 3, colatitude, lon).real * np.sqrt(2)
    spectrum = power_spectrum(field[None], GRID.centres_N3, GRID.area_N, 12)[0]
    assert spectrum[5] == pytest.approx(1 / 11, rel=0.02)
    assert np.delete(spectrum, 5).max() < 1e-4


def test_copy_conserves_and_is_rough_at_seams(sphere):
    truth = 10 * GRID.centres_N3[:, 2]
    coarse = block_means_of(truth)
    scores = DownscalingScores(sphere, std=1.0)
    scores.update(truth, block_mean_copy(coarse[None], CELLS), coarse)
    result = scores.result()
    assert result["conservation"] < 1e-9
    assert result["lag1"] is None
    assert result["crps"] == pytest.approx(result["mae"])
    assert "spread_skill" not in result


def test_interpolation_is_better_than_a_copy():
    field = GRID.centres_N3[:, 2]
    coarse = block_means_of(field)
    centres = Icosphere.build(0).centres_N3
    smooth = interpolation(coarse[None], barycentric(centres, GRID.centres_N3))[0]
    copy = block_mean_copy(coarse[None], CELLS)[0]
    assert np.abs(smooth - field).mean() < 0.3 * np.abs(copy - field).mean()


def test_regression_finds_a_linear_law_and_the_daily_cycle():
    rng = np.random.default_rng(6)
    neighbours = Icosphere.build(0).neighbours_N3
    slope, cycle = rng.standard_normal((2, CELLS))
    time = np.arange(60) / 7

    def fields(coarse, time):
        step = np.repeat(coarse[:, neighbours[:, 0]] - coarse, CELLS // BLOCKS, axis=1)
        hour = np.cos(2 * np.pi * time)[:, None]
        return block_mean_copy(coarse, CELLS) + slope * step + cycle * hour

    coarse = 280 + 5 * rng.standard_normal((60, BLOCKS))
    parts = [(fields(coarse[s], time[s]), coarse[s], time[s]) for s in (slice(30), slice(30, 60))]
    fitted = LinearRegression.fit(iter(parts), neighbours, CELLS)
    fresh = 280 + 5 * rng.standard_normal((3, BLOCKS))
    error = fitted(fresh, time[:3] + 0.4) - fields(fresh, time[:3] + 0.4)
    assert np.sqrt(np.mean(error**2)) < 0.1


def test_a_whole_evaluation(block_samples):
    import torch

    from millrace.systems.downscaling import diffusion as downscaler
    from millrace.systems.downscaling.dataset import BlockDataset
    from millrace.systems.downscaling.sampling import SamplerConfig
    from millrace.systems.downscaling.settings import BlockDatasetConfig, DownscalerConfig

    dataset = BlockDataset(block_samples, BlockDatasetConfig())
    torch.manual_seed(0)
    model = downscaler.SPEC.build(DownscalerConfig(channels=(8, 8, 8), embedding=8), dataset)
    scores, example = evaluate(model, dataset, "test", SamplerConfig(members=3, steps=3), times=2)
    assert set(scores["tas"]) == {"model", "block_mean", "interpolation", "linear_regression"}
    assert scores["tas"]["model"]["conservation"] < 1e-5
    assert scores["tas"]["model"]["times"] == 2
    errors = example.cases["errors"]["tas"]
    assert np.mean(errors["crps"]["values"]) == pytest.approx(scores["tas"]["model"]["crps"], 1e-6)
    together = np.sqrt(np.mean(np.square(errors["rmse"]["values"])))
    assert together == pytest.approx(scores["tas"]["model"]["rmse"], 1e-6)
    assert len(example.cases["names"]) == len(example.cases["blocks"]) == 2
    assert example.ensemble_ENV.shape == (3, 1280, 1)
    truth, copy = example.truth_NV[:, 0], np.repeat(example.coarse_MV[:, 0], 16)
    assert 1 < np.sqrt(np.mean((truth - copy) ** 2)) < 20, "kelvin"
    json.dumps(scores, allow_nan=False)
