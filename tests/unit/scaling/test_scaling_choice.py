"""Costs, and which layout is recommended."""

import pytest

from millrace.layout import Layout
from millrace.scaling.quantity import Quantity
from millrace.scaling.recommend import Candidate, pareto, recommend
from millrace.scaling.results import epoch_cost
from millrace.scaling.settings import Goal


def candidate(layout, wait, run, price, efficiency=0.9, label="measured", slow=None):
    hours = run * Layout.parse(layout).world_size
    return Candidate(layout, label, wait, True, run, hours, price, efficiency, slow or run)


ONE = candidate("n1_gpu1", 0.0, 10.0, 10.0, 1.0)
TWO = candidate("n1_gpu2", 0.5, 5.5, 11.0, 0.9)
FOUR = candidate("n1_gpu4", 8.0, 3.0, 12.0, 0.8)
ALL = [ONE, TWO, FOUR]


def test_cost_of_an_epoch_by_hand() -> None:
    cost = epoch_cost(Quantity(0.5, "s", "measured", 0.4, 0.6), Layout(2, 4), 100, 3.0, "EUR")
    assert cost.seconds.value == 50
    assert cost.device_hours.value == pytest.approx(50 * 8 / 3600)
    assert cost.node_hours.value == pytest.approx(50 * 2 / 3600)
    assert cost.money.value == pytest.approx(3 * 50 * 8 / 3600)
    assert (cost.money.low, cost.money.unit) == (pytest.approx(3 * 40 * 8 / 3600), "EUR")
    assert cost.times(20).money.high == pytest.approx(20 * 3 * 60 * 8 / 3600)
    assert epoch_cost(cost.seconds, Layout(1, 1), 1, None, "EUR").times(2).money is None


def test_throughput_turns_the_interval_round() -> None:
    throughput = Quantity(0.5, "s", "measured", 0.4, 0.8).over(64, "samples/s")
    assert (throughput.low, throughput.value, throughput.high) == (80, 128, 160)


@pytest.mark.parametrize(
    ("goal", "layout", "told"),
    [
        (Goal(), "n1_gpu2", "first to finish of 3 layouts, after 6 h of which 0.5 h in the queue"),
        (Goal(deadline_hours=10), "n1_gpu1", "cheapest of 2 layouts to finish within 10 h"),
        (Goal(deadline_hours=7), "n1_gpu2", "the only layout to finish within 7 h"),
        (Goal(deadline_hours=2), None, "to finish within 2 h, and n1_gpu2 comes closest with 6 h"),
        (Goal(budget=10.5), "n1_gpu1", "the only layout to cost 10.5 EUR or less"),
        (Goal(budget=9), None, "to cost 9 EUR or less, and n1_gpu1 comes closest with 10 EUR"),
        (Goal(min_efficiency=0.95), "n1_gpu1", "to reach 95% efficiency"),
        (Goal(min_efficiency=0.85), "n1_gpu2", "first to finish of 2 layouts to reach 85%"),
        (Goal.model_construct(min_efficiency=2), None, "and n1_gpu1 comes closest with 100%"),
        (Goal(budget_device_hours=10), "n1_gpu1", "10 device-hours or less"),
        (Goal(budget_device_hours=9), None, "n1_gpu1 comes closest with 10 device-hours"),
        (
            Goal(min_efficiency=0.85, deadline_hours=7),
            "n1_gpu2",
            "the only layout to reach 85% efficiency and finish within 7 h",
        ),
        (Goal(min_efficiency=0.95, deadline_hours=7), None, "to finish within 7 h, and n1_gpu1"),
    ],
)
def test_limits_choose_the_layout(goal, layout, told) -> None:
    made = recommend(ALL, goal, "EUR")
    assert made.layout == layout, made.sentence
    assert told in made.sentence


def test_an_easier_allocation_finishes_first() -> None:
    text = recommend(ALL, Goal(), "EUR").sentence
    assert "n1_gpu4 would run faster but wait longer" in text
    quick = candidate("n1_gpu4", 0.0, 3.0, 12.0)
    assert recommend([ONE, TWO, quick], Goal(), "EUR").layout == "n1_gpu4"


def test_predicted_layouts_are_said_to_be() -> None:
    guess = candidate("n4_gpu1", 0.0, 2.0, 12.0, label="extrapolated")
    assert "the times of n4_gpu1 are extrapolated, so measure it first" in (
        recommend([*ALL, guess], Goal(), "EUR").sentence
    )


def test_an_uncertain_deadline_is_said_to_be() -> None:
    close = candidate("n1_gpu2", 0.0, 6.9, 5.0, slow=7.2)
    assert "reaches past the deadline" in recommend([close], Goal(deadline_hours=7), "EUR").sentence
    assert "reaches past" not in recommend([TWO], Goal(deadline_hours=7), "EUR").sentence


def test_a_budget_without_prices_is_refused() -> None:
    free = candidate("n1_gpu1", 0, 1, None)
    assert "scaling.prices gives no price" in recommend([free], Goal(budget=1), "EUR").sentence


def test_pareto_front_leaves_out_what_is_beaten() -> None:
    assert pareto(ALL) == ["n1_gpu2", "n1_gpu1"]  # n1_gpu4 waits too long, and costs most
    assert pareto([candidate("n1_gpu1", 0, 1, 1), candidate("n1_gpu2", 0, 1, 2)]) == ["n1_gpu1"]
