"""Learning-rate factors against their closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.errors import ConfigError
from millrace.training.schedules import ScheduleConfig, factor

COSINE = ScheduleConfig(kind="cosine", warmup=2, horizon=10, floor=0.1)
WSD = ScheduleConfig(kind="wsd", horizon=20, decay=0.25, floor=0.2)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (ScheduleConfig(kind="constant"), {0: 1, 0.5: 1, 1e6: 1}),
        (ScheduleConfig(kind="constant", warmup=4), {0: 0, 1: 0.25, 3: 0.75, 4: 1, 9: 1}),
        (ScheduleConfig(), {0: 1, 4.999: 1, 5: 0.95, 9.9: 0.95, 10: 0.95**2, 101: 0.95**20}),
        (ScheduleConfig(gamma=0.5, every=2, warmup=4), {1: 0.25, 2: 0.25, 3: 0.375, 4: 0.25}),
        (
            COSINE,
            {
                1: 0.5,
                2: 1,
                4: 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2,
                6: 0.55,
                10: 0.1,
                11: 0.1,
                1000: 0.1,
            },
        ),
        (WSD, {0: 1, 15: 1, 16.25: 0.6, 17.8125: 0.4, 20: 0.2, 21: 0.2, 1000: 0.2}),
        (ScheduleConfig(kind="wsd", horizon=10, warmup=5), {2.5: 0.5, 8: 1, 8.5: 0.5, 10: 0}),
    ],
)
def test_closed_forms(config, values) -> None:
    assert {at: factor(config, at) for at in values} == pytest.approx(values)


@pytest.mark.parametrize("kind", ["constant", "exponential", "cosine", "wsd"])
@given(st.floats(0, 200))
def test_factors_stay_between_zero_and_one(kind, epoch) -> None:
    config = ScheduleConfig(kind=kind, warmup=3, horizon=50, floor=0.05)
    assert 0 <= factor(config, epoch) <= 1
    assert epoch < 50 or kind in ("constant", "exponential") or factor(config, epoch) >= 0.05


def test_steps_down_come_at_whole_epochs_whatever_the_batches() -> None:
    for steps_per_epoch in (3, 7, 49, 101, 997):
        config = ScheduleConfig(kind="exponential", gamma=0.5, every=1)
        for epoch in range(1, 40):
            step = epoch * steps_per_epoch
            assert factor(config, step / steps_per_epoch) == 0.5**epoch
            assert factor(config, (step - 1) / steps_per_epoch) == 0.5 ** (epoch - 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "cosinus"}, r"train\.schedule\.kind: expected one of constant"),
        ({"kind": "cosine"}, r"train\.schedule: horizon: 'cosine' needs"),
        ({"kind": "wsd"}, "horizon"),
        ({"kind": "cosine", "horizon": 0}, "horizon"),
        ({"kind": "cosine", "horizon": 5, "warmup": 5}, "after the warm-up"),
        ({"kind": "wsd", "horizon": 5, "warmup": 6}, "after the warm-up"),
    ],
)
def test_errors(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig.parse(values, "train.schedule")
