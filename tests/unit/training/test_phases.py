"""The clock of phases, on a clock of our own."""

import time

import pytest
import torch

from millrace.training.phases import PhaseClock


@pytest.fixture
def now(monkeypatch):
    times = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: times[0])
    return times


def test_phases_add_up_and_the_rest_is_in_the_total(now) -> None:
    clock = PhaseClock(torch.device("cpu"))
    clock.end_step()
    for _ in range(2):
        now[0] += 0.5  # between the steps: in the total alone
        for phase, seconds in (
            ("data", 1.0),
            ("forward", 2.0),
            ("backward", 3.0),
            ("data", 1.5),  # a second micro-batch
            ("forward", 2.5),
            ("backward", 3.5),
            ("communication", 4.0),
            ("optimiser", 0.25),
        ):
            clock.mark(phase)
            now[0] += seconds
        clock.end_step()
    assert (
        clock.steps()
        == [
            {
                "data": 2.5,
                "forward": 4.5,
                "backward": 6.5,
                "communication": 4.0,
                "optimiser": 0.25,
                "total": 18.25,
            }
        ]
        * 2
    )


def test_what_was_before_the_first_end_is_not_told(now) -> None:
    clock = PhaseClock(torch.device("cpu"))
    clock.mark("forward")
    now[0] += 9.0
    clock.end_step()
    assert clock.steps() == []
