"""A step, or an end of an epoch, that never ends kills its process; slow and first ones do not."""

import os
import signal
import subprocess
import sys
import time

import pytest

from millrace.training.watchdog import Watchdog

HANG = """
import sys, time
from millrace.training import watchdog
watchdog.LOOK_EVERY_S = 0.05
dog = watchdog.Watchdog(grace=0.3, grace_of_files=0.5)
steps, where = int(sys.argv[1]), sys.argv[2]
with dog.watching_steps():
    for _ in range(steps):
        dog.beat(0.01)
    if where == "inside":
        time.sleep(3)
for seconds in {"later": [0.01, 3], "first": [1]}.get(where, []):
    with dog.watching_end_of_epoch(True):
        time.sleep(seconds)
if where == "outside":
    time.sleep(1)
"""


def run(steps, where):
    return subprocess.run(
        [sys.executable, "-c", HANG, str(steps), where], capture_output=True, text=True
    )


def test_a_hanging_step_kills_the_process_and_says_so() -> None:
    done = run(20, "inside")
    assert done.returncode == -signal.SIGKILL
    assert "rank 0: no step for" in done.stderr


def test_so_does_an_end_of_an_epoch() -> None:
    """While ranks validate and save, they wait for each other too."""
    done = run(20, "later")
    assert done.returncode == -signal.SIGKILL
    assert "rank 0: no end of the epoch for" in done.stderr


# torchrun's part: it starts a rank that is stopped and another that waits for it.
NODE = """
import os, signal, subprocess, sys
stopped = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
stopped.send_signal(signal.SIGSTOP)
waiting = subprocess.Popen([sys.executable, "-c", sys.argv[1], "20", "inside"])
try:
    print(waiting.wait(), stopped.wait(timeout=float(sys.argv[2])))
finally:
    stopped.kill()
"""


@pytest.mark.parametrize(("started_by", "expected"), [("torchrun", "-9 -9"), ("others", "")])
def test_ranks_of_the_node_die_with_it_even_if_stopped(started_by, expected) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TORCHELASTIC_RUN_ID"}
    patience_s = "0.5"
    if started_by == "torchrun":
        environment["TORCHELASTIC_RUN_ID"], patience_s = "one", "60"
    command = [sys.executable, "-c", NODE, HANG, patience_s]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize(("steps", "where"), [(19, "inside"), (20, "first"), (20, "outside")])
def test_nothing_is_killed_before_times_are_known_nor_outside_of_training(steps, where) -> None:
    assert run(steps, where).returncode == 0


def test_the_limit_is_three_slow_steps_and_the_grace() -> None:
    dog = Watchdog(grace=10.0)
    for seconds in [0.1] * 99 + [2.0]:
        dog.beat(seconds)
    assert dog.limit == pytest.approx(3 * 0.119 + 10)
    for _ in range(30):
        dog.beat(2.0)
    assert dog.limit == pytest.approx(16.0)


@pytest.mark.parametrize(("has_saved", "grace"), [(True, 60.0), (False, 600.0)])
def test_the_end_of_an_epoch_may_take_three_times_the_longest_and_the_grace(
    has_saved, grace
) -> None:
    """A first checkpoint may take much longer than ends without one."""
    dog = Watchdog(grace_of_files=60.0)
    assert dog.limit_of_end is None
    for seconds in (0.2, 0.0):
        with dog.watching_end_of_epoch(has_saved):
            time.sleep(seconds)
    assert dog.limit_of_end == pytest.approx(3 * 0.2 + grace, abs=0.2)


def test_the_first_step_of_an_epoch_may_wait_for_a_checkpoint() -> None:
    dog = Watchdog(grace=10.0, grace_of_files=60.0)
    for _ in range(30):
        dog.beat(1.0)
    with dog.watching_end_of_epoch(True):
        pass
    with dog.watching_steps():
        assert dog.limit == pytest.approx(73.0, abs=0.2)
        dog.beat(1.0)
        assert dog.limit == pytest.approx(13.0)
