"""Do pipelines wait, and processes hold, what `millrace plan --parallel` says?
One thread each.

waiting  A tiny Aurora in two stages. Each process adds up how long it waits for messages of the other in a
         step, which lasts from a barrier to the end of the slower process. Predicted once as if
         both stages took equally long, (p - 1) / (m + p - 1), once with the operations of each stage, as
         the plan does, and once with the time of messages between the two, measured on their own: the
         plan knows no network.
memory   What a process holds at most in a training step: parameters and moments, and what the allocator's
         events say of everything else.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rows import Row, run
from torch.distributed.pipelining import PipelineStage, schedules

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/unit/training"))
from parallel_worker import memory  # noqa: E402

from millrace.systems.registry import get_model  # noqa: E402
from millrace.systems.weather.aurora.config import PUBLISHED  # noqa: E402
from millrace.systems.weather.dataset import WeatherBatch  # noqa: E402
from millrace.systems.weather.extract import WeatherConfig  # noqa: E402
from millrace.systems.weather.outline import WeatherOutline  # noqa: E402
from millrace.systems.weather.settings import WeatherWindowConfig  # noqa: E402
from millrace.training.config import TrainConfig  # noqa: E402
from millrace.training.distributed import Ranks, process_group  # noqa: E402
from millrace.training.engine import Trainer  # noqa: E402
from millrace.training.parallel.config import ParallelConfig  # noqa: E402
from millrace.training.parallel.divided import DividedModel  # noqa: E402
from millrace.training.parallel.footprint import Workload, footprints  # noqa: E402
from millrace.training.parallel.order import bubbles  # noqa: E402
from millrace.training.parallel.pipeline import stages  # noqa: E402

GOAL, ROUNDS, MICRO_BATCHES = 0.15, 9, (2, 4, 8)
ON_RANK = "--on-rank"
GRID = {"tiny": ((64, 128), 4), "small": ((32, 64), 4)}
"""Size of the model -> cells, pressure levels."""
BATCH = {"tiny": 8, "small": 2}
MODES: dict[str, tuple[int, dict[str, int], str]] = {
    "one process": (1, {}, "float32"),
    "shards": (2, {"dp_shard": 2}, "float32"),
    "shards, bfloat16": (2, {"dp_shard": 2}, "bfloat16"),
    "pipeline": (2, {"pipeline": 2}, "float32"),
    "cut layers": (2, {"tensor": 2}, "float32"),
}
"""Name -> processes, block `parallel`, precision."""


@dataclass(frozen=True)
class Samples(WeatherOutline):
    """Random weather, as the engine asks for it."""

    count: int = 1

    group_costs = np.ones(1)

    def groups(self, split: str) -> np.ndarray:
        """All samples are alike."""
        return np.array([self.count])

    def batch(self, split: str, group: int, index: Any, weight: Any = None) -> WeatherBatch:
        """Noise, the same for a sample whenever it is asked for."""
        made = super().batch(len(index))
        for number, sample in enumerate(index):
            random = torch.Generator().manual_seed(int(sample))
            for values in (made.past_BTCIJ, made.y_BKCIJ):
                values[number].normal_(generator=random)
        made.hours_B.zero_()
        made.scale_V.fill_(1.0)
        made.weight_B.copy_(torch.as_tensor(np.ones(len(index)) if weight is None else weight))
        return made


def subject(size: str, batch: int, precision: str) -> tuple[Workload, Samples]:
    """What is trained, and its samples."""
    spec, (config, _), (shape, levels) = get_model("aurora"), PUBLISHED[size], GRID[size]
    samples = Samples(WeatherConfig(), WeatherWindowConfig(), shape, levels, batch)
    outline = WeatherOutline(WeatherConfig(), WeatherWindowConfig(), shape, levels)
    train = TrainConfig(global_batch=batch, precision=precision)
    return Workload(spec, config, outline, outline.batch, train), samples


def resolved(what: Workload, ranks: int, block: dict[str, Any]) -> ParallelConfig:
    """The block `parallel` of a mode."""
    return ParallelConfig(**block).for_model(
        "aurora", what.model_config, ranks, what.train.global_batch
    )


def pipelines(_: int) -> Iterator[Row]:
    """How far the predicted share of waiting is from the measured one, with messages and without."""
    for key, (rounds, message) in _on_ranks(2, "waiting", "").items():
        schedule, parts = key.split()
        block = {"pipeline": 2, "schedule": schedule, "micro_batches": int(parts)}
        what, _ = subject("tiny", int(parts), "float32")
        config = resolved(what, 2, block)
        assert what.spec.division is not None
        module = what.spec.build(what.model_config, what.dataset)
        _, costs = stages(what.spec.division, module, config)
        # A pass forward and one back, which costs twice as much, of each micro-batch.
        second = 3 * int(parts) * sum(costs) / statistics.median(sum(busy) for busy, _, _ in rounds)
        linked = statistics.mean(bubbles(config, costs, message * second))
        errors = [100 * abs(linked / (sum(waited) / 2 / span) - 1) for _, waited, span in rounds]
        told = f"pipeline of two, {schedule}, {parts} micro-batches: predicted waiting, off by"
        yield Row(told, "%", errors, goal=100 * GOAL)


def processes(_: int) -> Iterator[Row]:
    """How far the planned memory of a process is from what it holds."""
    for size in GRID:
        for mode, (ranks, block, precision) in MODES.items():
            what, _ = subject(size, BATCH[size], precision)
            found = footprints(what, resolved(what, ranks, block), None, False)
            peaks = _on_ranks(ranks, "memory", f"{size}/{mode}")["peaks"]
            expected = [found[rank * len(found) // ranks].total for rank in range(ranks)]
            errors = [100 * abs(a / b - 1) for a, b in zip(expected, peaks, strict=True)]
            told = f"memory of Aurora {size}, {mode}, {max(peaks) / 2**20:,.0f} MB: plan off by"
            yield Row(told, "%", [max(errors)], goal=100 * GOAL)


def _on_ranks(ranks: int, what: str, mode: str) -> dict[str, Any]:
    """Result of the first of some processes that do this."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "result.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={ranks}", __file__, ON_RANK, what, mode, str(output)]
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
        )
        if done.returncode:
            sys.exit(f"{what} {mode}: not measured")
        return json.loads(output.read_text())


def measure(what: str, mode: str, output: str) -> None:
    """What one process does."""
    warnings.filterwarnings("ignore", message="parallel.micro_batches")
    with process_group() as ranks:
        result = waiting(ranks) if what == "waiting" else held(ranks, mode)
        if ranks.is_first:
            Path(output).write_text(json.dumps(result))


def held(ranks: Ranks, mode: str) -> dict[str, Any]:
    """Bytes that each process holds at most."""
    size, _, name = mode.partition("/")
    _, block, precision = MODES[name]
    what, samples = subject(size, BATCH[size], precision)
    trainer = Trainer(
        what.spec,
        what.model_config,
        samples,
        what.train,
        0,
        ranks,
        parallel=ParallelConfig(**block),
    )
    for group in trainer.optimizer.param_groups:
        group["foreach"] = True  # as on GPUs, for which the plan is: all parameters at once
    return memory(trainer, ranks)


def waiting(ranks: Ranks) -> dict[str, Any]:
    """Schedule and micro-batches -> `_rounds` and seconds of a message between the stages."""
    clock, waits = Clock(), Clock()
    # Where torch's schedules, and at the end of a step ours, wait for the other process.
    schedules._wait_batch_p2p = waits.watching(schedules._wait_batch_p2p)
    dist.all_reduce = waits.watching(dist.all_reduce)
    for name in ("forward_one_chunk", "backward_one_chunk"):
        setattr(PipelineStage, name, clock.watching(getattr(PipelineStage, name)))
    message = _message_seconds(ranks)
    found = {}
    for schedule, parts in itertools.product(("gpipe", "1f1b"), MICRO_BATCHES):
        step = _step(ranks, clock, schedule, parts)
        found[f"{schedule} {parts}"] = (_rounds(ranks, clock, waits, step), message)
    return found


def _rounds(ranks: Ranks, clock: "Clock", waits: "Clock", step: Callable[[], Any]) -> list[Any]:
    """Seconds that each process works, that it waits, and of the step, of each round."""
    found = []
    for number in range(ROUNDS + 2):  # the first two warm up
        clock.seconds = waits.seconds = 0.0
        dist.barrier()
        begun = time.perf_counter()
        step()
        span = time.perf_counter() - begun
        both = ranks.gather((clock.seconds, waits.seconds, span))
        if ranks.is_first and number > 1:
            busy, waited, spans = zip(*both, strict=True)
            found.append((busy, waited, max(spans)))
    return found


def _message_seconds(ranks: Ranks) -> float:
    """Median time to send what passes between the stages: tokens, time and skipped tokens of a sample."""
    what, _ = subject("tiny", 2, "float32")
    plan = footprints(what, resolved(what, 2, {"pipeline": 2}), None, False)
    parts = [
        torch.zeros(plan[0].sent["between stages"] // 2 // 3, dtype=torch.uint8) for _ in range(3)
    ]
    times = []
    for _ in range(50):
        dist.barrier()
        begun = time.perf_counter()
        for sender in (0, 1):
            pass_on = dist.isend if ranks.rank == sender else dist.irecv
            for work in [pass_on(part, 1 - ranks.rank) for part in parts]:
                work.wait()
        times.append((time.perf_counter() - begun) / 2)
    return statistics.median(times)


def _step(ranks: Ranks, clock: "Clock", schedule: str, parts: int) -> Callable[[], Any]:
    """Forward and backward passes of a step."""
    what, samples = subject("tiny", parts, "float32")
    assert what.spec.division is not None
    torch.manual_seed(0)
    module = what.spec.build(what.model_config, samples)
    block = {"pipeline": 2, "schedule": schedule, "micro_batches": parts}
    config = resolved(what, 2, block)
    divided = DividedModel(what.spec, module, config, ranks, samples, "float32", lambda _: None)
    loss_of = what.spec.division.loss
    batches = [samples.batch("train", 0, [number]) for number in range(parts)]

    def loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
        return loss_of(module, output, batch, what.train.loss).sum()

    return partial(divided.run, batches, clock.watching(loss), True)


class Clock:
    """Adds up the time spent in some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - begun

        return timed


if __name__ == "__main__":
    if sys.argv[1:2] == [ON_RANK]:
        measure(*sys.argv[2:])
    else:
        run({"parallel-waiting": pipelines, "parallel-memory": processes}, __doc__)
