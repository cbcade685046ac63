"""Efficiency is the product of its factors, and the right one is blamed."""

import numpy as np
import pytest
from synthetic import make_run, series

from millrace.scaling.factors import breakdown, compare, diagnose, levels_of, measure
from millrace.scaling.records import Times


def measured(*layouts, **options):
    return [measure(series([name], **options), 300, 0) for name in layouts]


def constant(**parts):
    """Times of two ranks and three steps, each [rank] or a number."""
    rows = {}
    for name in ("total", "forward", "backward", "communication", "data", "optimiser"):
        rows[name] = tuple((float(x),) * 3 for x in np.broadcast_to(parts.get(name, 0.0), 2))
    return Times(**rows)


def test_levels_by_hand() -> None:
    times = constant(total=10, forward=[4, 6], data=[1, 2], communication=[5, 2])
    # Without communication 5 and 8, without data 4 and 6, on average 5.
    np.testing.assert_allclose(levels_of(times), np.array([[10, 8, 6, 5]] * 3).T)


def test_factors_by_hand() -> None:
    base = measure([make_run(times=_one_rank(total=10, forward=9, data=1), losses=())], 200, 0)
    two = make_run(
        "n1_gpu2",
        times=constant(total=10, forward=[4, 6], data=[1, 2], communication=[5, 2]),
        losses=(),
    )
    factors = compare(measure([two], 200, 0), base, "measured")
    # Half the batch a rank: the base would take 5 s.
    assert factors.efficiency.value == pytest.approx(0.5 * 10 / 10)
    assert factors.balance.value == pytest.approx(5 / 6)
    assert factors.communication.value == pytest.approx(8 / 10)
    assert factors.data.value == pytest.approx((6 / 8) / (9 / 10))
    assert factors.compute.value == pytest.approx(0.5 * 9 / 5)


def _one_rank(**parts):
    names = ("total", "forward", "backward", "communication", "data", "optimiser")
    return Times(**{name: ((float(parts.get(name, 0)),) * 3,) for name in names})


@pytest.mark.parametrize("mode", ["strong", "weak"])
def test_product_of_factors_is_the_efficiency(mode) -> None:
    options = {"mode": mode, "data_s": 3e-3, "run_noise": 0.02}
    (base,) = measured("n1_gpu1", **options)
    (four,) = measured("n2_gpu2", slow=[1, 1.1, 1.3, 1], **options)
    factors = compare(four, base, "measured")
    names = ("balance", "communication", "data", "compute")
    product = np.prod([getattr(factors, name).value for name in names])
    assert product == pytest.approx(factors.efficiency.value, rel=1e-12)
    x = [
        np.median([r.global_batch / np.median(r.times.array("total")[0]) for r in m.runs])
        for m in (four, base)
    ]
    assert factors.efficiency.value == pytest.approx(x[0] / 4 / x[1], rel=1e-6)


def test_parts_of_a_step_add_up_to_it() -> None:
    (four,) = measured("n2_gpu2", slow=[1, 1.2, 1, 1], data_s=2e-3)
    parts = breakdown(four)
    assert sum(parts.values()) == pytest.approx(four.levels[0])
    assert parts["backward"] == pytest.approx(2 * parts["forward"])
    assert all(seconds >= 0 for seconds in parts.values())


def test_known_imbalance_is_inside_its_interval() -> None:
    truth = 1.05 / 1.2  # one rank of four takes 1.2 times as long
    held, trials = 0, 100
    for trial in range(trials):
        options = {"seed": trial, "run_noise": 0.01, "noise": 0.01, "rank_noise": 0.02}
        base = measure(series(["n1_gpu1"], **options), 300, trial)
        four = measure(series(["n1_gpu4"], slow=[1, 1, 1, 1.2], **options), 300, trial)
        balance = compare(four, base, "measured").balance
        held += balance.low <= truth <= balance.high
        width = balance.high - balance.low
        assert 1e-5 < width < 0.06
    assert held / trials >= 0.93


def test_known_efficiency_is_inside_its_interval() -> None:
    # 2 ms + 64 ms on one rank; 2 ms + 16 ms + 3 ms of communication on four.
    truth = 66 / (4 * 21)
    held, trials = 0, 100
    for trial in range(trials):
        options = {"seed": trial, "run_noise": 0.015, "noise": 0.02, "communication_s": 3e-3}
        base = measure(series(["n1_gpu1"], **{**options, "communication_s": 0.0}), 300, trial)
        four = measure(series(["n1_gpu4"], **options), 300, trial)
        efficiency = compare(four, base, "measured").efficiency
        held += efficiency.low <= truth <= efficiency.high
    assert held / trials >= 0.93


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        (
            {"slow": [1, 1, 1.5, 1]},
            "imbalance",
            "1.33 times as long as the mean rank, and it is rank 2 in 100%",
        ),
        ({"data_s": 10e-3}, "data", "waiting for data: 3"),
        ({"communication_s": 15e-3}, "communication", "45% of a step is communication"),
        ({"fixed_s": 20e-3}, "computing", "with 16 samples on a rank"),
        ({"fixed_s": 1e-5, "communication_s": 1e-5}, "none", "no loss above 5%"),
    ],
)
def test_the_largest_loss_is_named(options, kind, told) -> None:
    base_options = {k: v for k, v in options.items() if k not in ("slow", "communication_s")}
    (base,) = measured("n1_gpu1", **base_options)
    (four,) = measured("n1_gpu4", **{"communication_s": 1e-4, **options})
    diagnosis = diagnose(four, compare(four, base, "measured"))
    assert diagnosis.kind == kind, diagnosis.sentence
    assert told in diagnosis.sentence
    assert diagnosis.sentence.count(".") >= 1


def test_waiting_for_a_slow_rank_is_not_called_communication() -> None:
    (four,) = measured("n1_gpu4", slow=[1, 1, 1, 2], communication_s=0.0)
    parts = breakdown(four)
    assert parts["communication"] == pytest.approx(0, abs=1e-9)
    assert parts["imbalance"] > 0.3 * four.levels[0]
