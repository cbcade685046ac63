"""Medians, bootstrap intervals and relative least squares."""

import numpy as np
import pytest
from scipy import stats

from millrace.scaling.statistics import (
    bootstrap,
    interval,
    median_of_medians,
    relative_least_squares,
    welch_degrees,
)


def test_the_estimate_is_the_median_of_medians() -> None:
    repeats = [np.array([[1.0, 2, 9]]), np.array([[4.0, 5, 6, 100]]), np.array([[3.0]])]
    assert median_of_medians(repeats) == [3.0]  # of 2, 5.5 and 3


def test_draws_are_those_of_the_seed_and_keep_series_together() -> None:
    random = np.random.default_rng(0)
    one = random.uniform(1, 2, (3, 30))
    repeats = [np.stack([row, 2 * row]) for row in one]
    draws = bootstrap(repeats, 300, seed=1)
    assert draws.shape == (300, 2)
    np.testing.assert_allclose(draws[:, 1], 2 * draws[:, 0])
    np.testing.assert_array_equal(draws, bootstrap(repeats, 300, seed=1))
    assert (draws != bootstrap(repeats, 300, seed=2)).any()


def test_few_repeats_widen_the_interval_as_student_s_t() -> None:
    draws = np.exp(np.random.default_rng(0).standard_normal(100_000) * 0.01)
    low, high = interval(1.0, draws, degrees=4)
    ratio = stats.t.ppf(0.975, 4) / stats.norm.ppf(0.975)
    assert np.log(high) == pytest.approx(0.0196 * ratio, rel=0.02)
    assert np.log(low) == pytest.approx(-0.0196 * ratio, rel=0.02)
    assert interval(1.0, draws, 0)[1] == pytest.approx(np.exp(0.0196), rel=1e-3)


def test_the_interval_holds_the_estimate() -> None:
    assert interval(1.0, [2.0, 3.0], 2)[0] == 1.0
    assert interval(4.0, [2.0, 3.0], 2)[1] == 4.0


@pytest.mark.parametrize(("run_noise", "step_noise"), [(0.0, 0.02), (0.015, 0.002), (0.01, 0.02)])
def test_interval_of_a_ratio_holds_the_truth(run_noise, step_noise) -> None:
    random, held, trials = np.random.default_rng(3), 0, 200
    for trial in range(trials):
        sides = []
        for side in range(2):
            log = run_noise * random.standard_normal((3, 1)) + step_noise * random.standard_normal(
                (3, 30)
            )
            repeats = [row[None] for row in np.exp(log)]
            draws = bootstrap(repeats, 300, seed=2 * trial + side)[:, 0]
            sides.append((median_of_medians(repeats)[0], draws))
        (a, a_draws), (b, b_draws) = sides
        low, high = interval(a / b, a_draws / b_draws, degrees=4)
        held += low <= 1 <= high
    assert held / trials >= 0.93


def test_degrees_of_a_ratio_are_those_of_the_side_that_scatters() -> None:
    random = np.random.default_rng(0)
    wide, narrow = (np.exp(s * random.standard_normal(5000)) for s in (0.1, 1e-6))
    assert welch_degrees(wide, 2, wide[::-1], 2) == pytest.approx(4)
    assert welch_degrees(wide, 2, narrow, 2) == pytest.approx(2, rel=1e-3)
    assert welch_degrees(wide, 2, np.ones(9), 0) == 2
    assert welch_degrees(wide, 0, wide, 2) == 0


def test_exact_data_give_exact_coefficients() -> None:
    design = np.array([[1.0, 0], [1, 1e6], [1, 2e6], [1, 5e9]])
    fit = relative_least_squares(design, design @ [3.0, 2e-6])
    np.testing.assert_allclose(fit.coefficients, [3.0, 2e-6], rtol=1e-9)
    assert fit.scatter < 1e-9
    assert fit.degrees == 2


def test_as_many_observations_as_coefficients_have_no_covariance() -> None:
    fit = relative_least_squares([[1.0, 1], [1, 2]], [3.0, 5.0])
    np.testing.assert_allclose(fit.coefficients, [1, 2])
    assert np.isnan(fit.covariance).all()


def test_ratio_interval_is_fieller_s() -> None:
    """Its ends are where a t test of p - r q is just significant."""
    random = np.random.default_rng(0)
    x = np.repeat([1.0, 2, 4, 8], 3)
    design = np.stack([np.ones_like(x), x], axis=1)
    fit = relative_least_squares(
        design, (design @ [1, 0.1]) * (1 + 0.05 * random.standard_normal(12))
    )
    for end in fit.ratio_interval(1, 0):
        direction = np.array([-end, 1])
        t = direction @ fit.coefficients / np.sqrt(direction @ fit.covariance @ direction)
        assert abs(t) == pytest.approx(stats.t.ppf(0.975, 10), rel=1e-6)


def test_many_series_are_fitted_at_once_as_one_by_one() -> None:
    random = np.random.default_rng(0)
    design = np.stack([np.ones(8), np.arange(8.0)], axis=1)
    y = (design @ [2, 1]) * (1 + 0.01 * random.standard_normal((5, 8)))
    together = relative_least_squares(design, y)
    for i, row in enumerate(y):
        alone = relative_least_squares(design, row)
        np.testing.assert_allclose(together.coefficients[i], alone.coefficients)
        np.testing.assert_allclose(together.covariance[i], alone.covariance)
