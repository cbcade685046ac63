"""Share of a training step that waits for samples, in each demo, on one core.

Steps are measured as the rule ``measure_throughput`` does, in turns with samples that are gathered ahead
and without. The thread that gathers has no core of its own here: what it computes takes time from the step.

On a machine that does other things, too, a thread waits for the core more often than for samples. So the
CPU time of the thread that steps is measured: what it does for samples itself. ``waiting-wall-…`` measures
by the wall.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench_saving import requested
from rows import Row, run

from millrace.scaling.measure import measure
from millrace.scaling.request import MeasureRequest
from millrace.training.ahead import Ahead
from millrace.training.distributed import Ranks

GOAL = 2.0
DEMOS = {
    "gino/gino_head": 60,
    "gino/gino_salt": 60,
    "gfno/gfno_plane": 60,
    "downscaler/downscaler_tas": 20,
    "aurora/aurora_copies": 60,
    "smart/smart_traffic": 20,
}
"""Steps that are recorded of the experiments of each demo."""


class NotAhead(Ahead):
    """Gathers nothing before it is asked for."""

    def take(self, share: Any) -> None:
        return None

    def instead(self, gather: Callable[[], Any]) -> Any:
        return gather()

    def _gather(self) -> None:
        pass


def share(request: MeasureRequest, kind: type[Ahead], clock: Callable[[], float]) -> float:
    gathering = patch("millrace.training.passes.Ahead", kind)
    with gathering, patch("millrace.training.phases.time.perf_counter", clock):
        run = measure(request, Ranks(0, 1, torch.device("cpu")))
    assert run is not None
    return float(run.times.array("data").sum() / run.times.array("total").sum())


def shares_of(name: str, clock: Callable[[], float], rounds: int) -> Iterator[Row]:
    """Shares of samples that are gathered ahead, and before that within the step."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    demo, _, experiment = name.partition("/")
    with tempfile.TemporaryDirectory() as folder:
        made = requested(demo, Path(folder), experiment)
        request = MeasureRequest(
            experiment=experiment,
            layout="n1_gpu1",
            mode="strong",
            repeat=0,
            definition=made.definition,
            files=made.files,
            output="",
            steps=DEMOS[name],
        )
        found: dict[type[Ahead], list[float]] = {NotAhead: [], Ahead: []}
        for repeat in range(1 if clock is time.thread_time else min(rounds, 3)):
            for kind, shares in found.items():
                shares.append(100 * share(replace(request, repeat=repeat), kind, clock))
    what = f"{experiment}: share of a step that waits for samples"
    yield Row(f"{what}, gathered in it", "%", found[NotAhead])
    yield Row(f"{what}, gathered ahead", "%", found[Ahead], goal=GOAL)


MEASUREMENTS = {
    f"waiting{kind}-{name.partition('/')[2]}": partial(shares_of, name, clock)
    for kind, clock in (("", time.thread_time), ("-wall", time.perf_counter))
    for name in DEMOS
}

if __name__ == "__main__":
    run(MEASUREMENTS, __doc__, on_request=[one for one in MEASUREMENTS if "-wall-" in one])
