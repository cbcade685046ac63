"""Warning signals and the clock, and no stop without them."""

import os
import signal
import time

import pytest

from millrace.errors import ConfigError
from millrace.training.deadline import DEADLINE, Deadline, Stop


@pytest.fixture
def handlers():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_signals_only_set_the_reason(handlers) -> None:
    for number in handlers:
        deadline = Deadline()
        deadline.listen()
        assert deadline.stop is Stop.NO
        os.kill(os.getpid(), number)
        cancelled = number in (signal.SIGTERM, signal.SIGINT)
        assert deadline.stop is (Stop.CANCELLED if cancelled else Stop.WARNED)


def test_it_stops_when_what_is_left_is_needed_to_save(clock) -> None:
    deadline = Deadline(end=1100.0)
    assert deadline.reserve == 3 * 5.0 + 1.0  # before anything was measured
    clock[0] = 1083.9
    assert deadline.stop is Stop.NO
    clock[0] = 1084.1
    assert deadline.stop is Stop.END
    clock[0] = 1200.0
    assert deadline.stop is Stop.END


def test_the_reserve_is_three_slow_saves_and_a_slow_step(clock) -> None:
    deadline = Deadline(end=1100.0)
    for seconds in [0.1] * 50 + [2.0]:
        deadline.record_save(seconds)
    for seconds in [0.01] * 50 + [0.5]:
        deadline.record_step(seconds)
    # 99 % of 51 values lies half way between the last two.
    assert deadline.reserve == pytest.approx(3 * 1.05 + 0.255, abs=1e-9)
    clock[0] = 1096.0
    assert deadline.stop is Stop.NO
    deadline.record_save(4.0)
    assert deadline.stop is Stop.END


def test_it_forgets_slow_saves_of_long_ago() -> None:
    deadline = Deadline()
    for seconds in [60.0] * 20 + [0.1] * 100:
        deadline.record_save(seconds)
    for seconds in [60.0] * 20 + [0.1] * 1000:
        deadline.record_step(seconds)
    assert deadline.reserve == pytest.approx(0.4)


def test_no_end_no_reason(clock) -> None:
    clock[0] = 1e12
    assert Deadline().stop is Stop.NO


@pytest.mark.parametrize(("value", "end"), [("1050", 1050.0), ("", None), (None, None)])
def test_end_from_the_environment(monkeypatch, clock, value, end) -> None:
    monkeypatch.delenv(DEADLINE, raising=False)
    if value is not None:
        monkeypatch.setenv(DEADLINE, value)
    deadline = Deadline.from_environment()
    clock[0] = (end or 1e12) - 17
    assert deadline.stop is Stop.NO
    clock[0] += 2
    assert deadline.stop is (Stop.END if end else Stop.NO)


def test_end_that_is_no_number_is_refused_by_name(monkeypatch) -> None:
    monkeypatch.setenv(DEADLINE, "tomorrow")
    with pytest.raises(ConfigError, match="MILLRACE_DEADLINE='tomorrow'"):
        Deadline.from_environment()


def test_validation_is_not_interrupted_so_its_time_is_kept(clock) -> None:
    deadline = Deadline(end=1100.0)
    before = deadline.reserve
    deadline.record_validation(30.0)
    assert deadline.reserve == pytest.approx(before + 30.0)
