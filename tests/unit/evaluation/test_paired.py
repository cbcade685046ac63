"""Errors by case, and intervals of their differences: against theory, scipy, and what must not depend."""

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from millrace.errors import DataError
from millrace.evaluation.cases import blocks_in_time, case_record, issue_times
from millrace.evaluation.paired import DRAWS, block_interval, differences


def record(values, names=None, blocks=None, variable="head", score="rmse", unit="m"):
    names = [str(n) for n in range(len(values))] if names is None else names
    blocks = np.arange(len(values)) if blocks is None else blocks
    return case_record(names, blocks, {variable: {score: (unit, values)}})


def normal(size, seed=0):
    return np.random.default_rng(seed).normal(0.3, 2.0, size)


def test_independent_cases_have_the_interval_of_normal_theory():
    x = normal(1000)
    low, high = block_interval(x, np.arange(1000))
    half = norm.ppf(0.975) * x.std() / np.sqrt(1000)
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.03 * half)


def test_blocks_of_one_case_are_the_bootstrap_of_scipy():
    x = normal(40)
    expected = bootstrap(
        (x,), np.mean, n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert block_interval(x, np.arange(40)) == pytest.approx(
        (expected.low, expected.high), rel=1e-12
    )


def test_cases_of_a_block_stay_together():
    """Copies of a case are no new knowledge: the interval is that of one case in each block."""
    x = normal(40)
    alone = block_interval(x, np.arange(40))
    assert block_interval(np.repeat(x, 5), np.repeat(np.arange(40), 5)) == pytest.approx(alone)
    low, high = block_interval(np.repeat(x, 5), np.arange(200))
    assert high - low < 0.6 * (alone[1] - alone[0])


def test_blocks_of_correlated_cases_have_the_interval_of_theory():
    """A mean over blocks of 8 with a common part of variance 1 and own parts of variance 1."""
    random = np.random.default_rng(3)
    common_B, own_BN = random.standard_normal(500), random.standard_normal((500, 8))
    low, high = block_interval((common_B[:, None] + own_BN).ravel(), np.repeat(np.arange(500), 8))
    half = norm.ppf(0.975) * np.sqrt((1 + 1 / 8) / 500)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)


def test_larger_blocks_count_by_their_cases():
    values, blocks = np.array([1.0, 1.0, 1.0, 5.0]), np.array([0, 0, 0, 1])
    # Draws of two blocks: both first, one each, both second.
    assert block_interval(values, blocks) == pytest.approx((1.0, 5.0))
    [found] = differences(record(values, blocks=blocks), record(np.zeros(4)))
    assert found.difference == 2.0
    assert (found.cases, found.blocks) == (4, 2)


def test_a_run_beside_itself_differs_by_nothing():
    one = record(normal(30) ** 2)
    [found] = differences(one, one)
    assert (found.difference, found.low, found.high, found.better) == (0.0, 0.0, 0.0, "")
    assert found.mean_a == found.mean_b


def test_who_is_better():
    x = np.abs(normal(50))
    worse, better = record(x + 1), record(x)
    [found] = differences(worse, better)
    assert found.better == "B"
    assert (found.low, found.high) == pytest.approx((1.0, 1.0))
    [found] = differences(better, worse)
    assert found.better == "A"
    assert found.record()["better"] == "A"


@pytest.mark.parametrize(("blocks", "better"), [(5, ""), (6, "A")])
def test_few_blocks_that_agree_may_do_so_by_chance(blocks, better):
    [found] = differences(record(np.ones(blocks)), record(np.full(blocks, 2.0)))
    assert found.high < 0
    assert found.better == better


def test_one_block_has_no_interval():
    [found] = differences(record(normal(5), blocks=[0] * 5), record(normal(5, 1), blocks=[0] * 5))
    assert found.low is found.high is None
    assert found.better == ""


def test_cases_are_matched_by_name():
    a = record([1.0, 2.0, 3.0, 9.0], names=["x", "y", "z", "other"])
    b = record([30.0, 10.0, 20.0], names=["z", "x", "y"])
    [found] = differences(a, b)
    assert (found.mean_a, found.mean_b, found.cases) == (2.0, 20.0, 3)
    with pytest.raises(
        DataError, match=r"no test case in common: .* A are x to other \(4\), those of B p to"
    ):
        list(differences(a, record([1.0, 2.0], names=["p", "q"])))


def test_cases_without_an_error_are_left_out():
    [found] = differences(record([1.0, np.nan, 3.0]), record([2.0, 5.0, np.inf]))
    assert (found.mean_a, found.mean_b, found.cases) == (1.0, 2.0, 1)


def test_other_scores_and_units_are_refused():
    with pytest.raises(DataError, match="no score of a variable in common: A has head, B has salt"):
        list(differences(record([1.0]), record([1.0], variable="salt")))
    with pytest.raises(DataError, match="head: its rmse is in m in A and in mm in B"):
        list(differences(record([1.0]), record([1.0], unit="mm")))


def test_what_is_in_one_block_in_either_run_stays_together():
    x = normal(6)
    a, b = record(x, blocks=[0, 0, 1, 1, 2, 3]), record(x + 1, blocks=[0, 1, 1, 2, 3, 3])
    [found] = differences(a, b)
    assert found.blocks == 2, "0 to 3 are linked, and so are 4 and 5"


def test_records_are_short_and_say_what_is_not_defined():
    made = record([1 / 3, np.nan], blocks=[7, 3])
    assert made["errors"]["head"]["rmse"] == {"unit": "m", "values": [0.3333333, None]}
    assert made["blocks"] == [1, 0]
    with pytest.raises(ValueError, match="1 errors and 2 blocks of 2 cases"):
        case_record(["a", "b"], [0, 0], {"head": {"rmse": ("m", [1.0])}})


def test_blocks_begin_a_span_after_each_other():
    assert blocks_in_time([0, 1, 2, 3, 4, 9], 2).tolist() == [0, 0, 1, 1, 2, 3]
    assert blocks_in_time([0.0, 0.1, 0.3], 0.1 * 3).tolist() == [0, 0, 1]
    assert issue_times([0.25, 19783.5]) == ["1970-01-01T06:00", "2024-03-01T12:00"]
