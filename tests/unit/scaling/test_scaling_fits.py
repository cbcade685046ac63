"""Fitted laws recover known constants inside their intervals, and refuse what is not supported."""

import numpy as np
import pytest

from millrace.scaling.fits import AMDAHL, GUSTAFSON, USL, Fit, estimate, evaluate, fit
from millrace.scaling.quantity import EXTRAPOLATED, Refusal

TRIALS = 1000


def law_values(law, p, first, second=0.0):
    if law == GUSTAFSON:
        return 100 * (p - first * (p - 1))
    return 100 * p / (1 + first * (p - 1) + second * p * (p - 1))


def ranks(largest, repeats=3):
    return np.repeat(2.0 ** np.arange(int(np.log2(largest)) + 1), repeats)


@pytest.mark.parametrize("noise", [0.01, 0.02])
@pytest.mark.parametrize("largest", [8, 32])
@pytest.mark.parametrize(
    "truth", [(0.05, 0.002), (0.02, 0.0), (0.0, 0.001), (0.1, 0.0005), (0.0, 0.0)]
)
def test_usl_holds_sigma_and_kappa(noise, largest, truth) -> None:
    p = ranks(largest)
    random = np.random.default_rng(11)
    x = law_values(USL, p, *truth) * (1 + noise * random.standard_normal((TRIALS, len(p))))
    values, low, high, single, _ = estimate(USL, p, x)
    held = ((low <= truth) & (truth <= high)).mean(axis=0)
    assert (held >= 0.93).all(), held
    assert (low >= 0).all()
    assert ((low <= values) & (values <= high)).all()
    assert np.median(single) == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("law", [AMDAHL, GUSTAFSON])
@pytest.mark.parametrize("truth", [0.0, 0.03, 0.2])
def test_amdahl_and_gustafson_hold_the_serial_share(law, truth) -> None:
    p = ranks(8)
    random = np.random.default_rng(12)
    x = law_values(law, p, truth) * (1 + 0.02 * random.standard_normal((TRIALS, len(p))))
    values, low, high, _, _ = estimate(law, p, x)
    held = ((low <= truth) & (truth <= high)).mean()
    assert held >= 0.93, held
    assert np.median(values) == pytest.approx(truth, abs=0.004)
    # An interval that always holds the truth because it is wide would be no use.
    assert np.median(high - low) < 0.07


def test_exact_series_are_recovered_exactly() -> None:
    p = ranks(16, repeats=2)
    made = fit(USL, p, law_values(USL, p, 0.08, 0.003))
    assert isinstance(made, Fit)
    assert made.constants["sigma"].value == pytest.approx(0.08, rel=1e-6)
    assert made.constants["kappa"].value == pytest.approx(0.003, rel=1e-6)
    assert made.single.value == pytest.approx(100)
    assert made.peak_ranks.value == pytest.approx(np.sqrt(0.92 / 0.003))
    assert made.peak_ranks.label == EXTRAPOLATED
    assert "peaks at 18 ranks (extrapolated)" in made.sentence


def test_faster_than_linear_gives_zero_not_a_negative_share() -> None:
    p = ranks(8)
    made = fit(USL, p, 100 * p**1.1)
    assert made.constants["sigma"].value == made.constants["kappa"].value == 0
    assert made.constants["sigma"].low == 0


@pytest.mark.parametrize("law", [AMDAHL, GUSTAFSON, USL])
def test_three_points_are_refused(law) -> None:
    p = ranks(4)
    refused = fit(law, p, law_values(law, p, 0.05))
    assert isinstance(refused, Refusal)
    assert "3 distinct numbers of ranks were measured (1, 2, 4)" in refused.reason


def test_a_single_run_for_each_number_of_ranks_is_enough() -> None:
    p = ranks(8, repeats=1)
    assert isinstance(fit(USL, p, law_values(USL, p, 0.05)), Fit)


@pytest.mark.parametrize("law", [AMDAHL, GUSTAFSON, USL])
def test_a_fitted_law_can_be_evaluated_elsewhere(law) -> None:
    p = ranks(8)
    constants = (0.05, 0.001) if law == USL else (0.05,)
    expected = law_values(law, np.array([3, 16]), *constants)
    assert evaluate(fit(law, p, law_values(law, p, *constants)), [3, 16]) == pytest.approx(expected)


def test_a_peak_out_of_reach_is_not_told() -> None:
    p = ranks(8)
    made = fit(USL, p, law_values(USL, p, 0.05, 0.0001))  # peak at 97 ranks
    assert made.peak_ranks is None
    assert "no peak up to 16 ranks" in made.sentence
