"""The alpha-beta model of the all-reduce."""

import numpy as np
import pytest
from synthetic import LINKS, SIZES, all_reduce

from millrace.scaling.communication import (
    LinkModel,
    all_reduce_seconds,
    assumed_link,
    bus_bandwidth,
    crossover_batch,
    estimate,
    fit_link,
)
from millrace.scaling.quantity import Refusal
from millrace.scaling.records import AllReduceTiming


def table(sizes=SIZES, ranks=4, link="intra"):
    return [AllReduceTiming(size, all_reduce(size, ranks, link), ranks, link) for size in sizes]


def test_ring_all_reduce_by_hand() -> None:
    link = assumed_link("inter", 1e-5, 1e9)
    # 6 messages of a quarter of 4 MB each, one after the other.
    assert all_reduce_seconds(link, 4e6, 4) == pytest.approx(6 * (1e-5 + 1e6 / 1e9))
    assert all_reduce_seconds(link, 4e6, 1) == 0
    assert link.source == "assumed in the configuration, not measured"


def test_bus_bandwidth_is_that_of_the_link_without_latency() -> None:
    link = assumed_link("intra", 1e-30, 5e9)
    for ranks in (2, 3, 8):
        seconds = all_reduce_seconds(link, 1e8, ranks)
        assert bus_bandwidth(1e8, seconds, ranks) == pytest.approx(5e9)


def test_exact_tables_are_recovered_from_several_ranks() -> None:
    made = fit_link(table(ranks=2) + table(ranks=4), "intra")
    assert isinstance(made, LinkModel)
    assert made.alpha.value == pytest.approx(LINKS["intra"][0], rel=1e-6)
    assert made.beta.value == pytest.approx(LINKS["intra"][1], rel=1e-6)
    assert made.deviation < 1e-6


@pytest.mark.parametrize("noise", [0.01, 0.02])
def test_intervals_hold_alpha_and_beta(noise) -> None:
    size = np.repeat(np.array(SIZES, dtype=float), 3)
    ranks = np.full(len(size), 4.0)
    alpha, beta = LINKS["inter"]
    random = np.random.default_rng(5)
    seconds = all_reduce(size, ranks, "inter") * (
        1 + noise * random.standard_normal((1000, len(size)))
    )
    (found, _), low, high = estimate(size, ranks, seconds)
    truth = np.array([alpha, beta])[:, None]
    held = ((low <= truth) & (truth <= high)).mean(axis=1)
    assert (held >= 0.93).all(), held
    assert np.median(found) == pytest.approx(alpha, rel=0.01)
    assert np.median(high[1] - low[1]) < 0.1 * beta


def test_latency_is_never_negative() -> None:
    made = fit_link([AllReduceTiming(n, 2e-10 * n**1.05, 2, "intra") for n in SIZES], "intra")
    assert made.alpha.value == 0
    assert made.beta.value > 0


@pytest.mark.parametrize(
    ("transfers", "told"),
    [
        (table(link="inter"), "no all-reduce over them was measured"),
        (table(SIZES[:3]), "3 sizes from 4,096 to 65,536 bytes"),
        (table([1000, 2000, 3000, 4000]), "over a factor of 10"),
    ],
)
def test_what_cannot_tell_alpha_from_beta_is_refused(transfers, told) -> None:
    refused = fit_link(transfers, "intra")
    assert isinstance(refused, Refusal)
    assert told in refused.reason


def test_time_that_does_not_grow_is_refused() -> None:
    refused = fit_link(
        [AllReduceTiming(n, 1e-3 / (1 + k), 2, "intra") for k, n in enumerate(SIZES)], "intra"
    )
    assert isinstance(refused, Refusal)
    assert "does not grow" in refused.reason


def test_crossover_is_where_both_take_the_same_time() -> None:
    constant, slope, communication = 1e-3, 2e-4, 5e-3
    batch = crossover_batch((constant, slope), communication)
    assert constant + slope * batch == pytest.approx(communication)
    assert crossover_batch((constant, slope), 5e-4) == 0
    assert crossover_batch((constant, 0.0), communication) is None
