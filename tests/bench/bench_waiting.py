"""Share of a training step that waits for samples, in each demo, on one core.

Steps are measured as the rule ``measure_throughput`` does, in turns with samples that are gathered ahead
and without. The thread that gathers has no core of its own here: what it computes takes time from the step.

On a machine that does other things, too, a thread waits for the core more often than for samples. With
``--cpu`` the CPU time of the thread that steps is measured instead: what it does for samples itself.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench_saving import requested

from millrace.scaling.measure import measure
from millrace.scaling.request import MeasureRequest
from millrace.training.ahead import Ahead
from millrace.training.distributed import Ranks

GOAL, ROUNDS = 0.02, 3
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demos", nargs="*", default=list(DEMOS), help=f"of {', '.join(DEMOS)}")
    parser.add_argument("--cpu", action="store_true", help="CPU time, not that of the wall")
    given = parser.parse_args()
    clock = time.thread_time if given.cpu else time.perf_counter
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print("demo/experiment: share of the step that waits for samples, gathered in it, and ahead")
    for name in given.demos:
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
            for repeat in range(1 if given.cpu else ROUNDS):
                for kind, shares in found.items():
                    shares.append(share(replace(request, repeat=repeat), kind, clock))
        before, after = (statistics.median(shares) for shares in found.values())
        said = "reached" if after <= GOAL else "MISSED"
        print(f"{name}: {before:.2%}, {after:.2%}; {said}", flush=True)


if __name__ == "__main__":
    main()
