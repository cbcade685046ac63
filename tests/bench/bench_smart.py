"""A training step and a rollout of SMART against its formula as it is written down, on one CPU core.

Two variants take turns in one process, with the same weights; a step is forecast, loss, gradient, clipping
and AdamW, of a model with 7 million parameters on simulated intersections.

plain     gathered keys and values, every pair and token embedded at once, as on a GPU
millrace  relations and attention by kernels in C, or in chunks where there is no compiler, without
          padding; in a rollout also tables of relations; linear layers by oneDNN where that is faster
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from rows import Limits, Row, in_turns, run
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from millrace.models import products
from millrace.processes import keep_freed_memory
from millrace.systems.traffic.dataset import ScenarioBatch, ScenarioDataset
from millrace.systems.traffic.scenarios import build_vocabulary, tokenise
from millrace.systems.traffic.settings import ScenarioConfig, SmartConfig, TokenConfig
from millrace.systems.traffic.simulator.traffic import TrafficConfig, simulate
from millrace.systems.traffic.smart import chunked
from millrace.systems.traffic.smart.rollout import RolloutConfig, rollout
from millrace.systems.traffic.smart.spec import SPEC

STEP_GOAL, ROLLOUT_GOAL = 1.5, 2.0
SCENARIOS, SAMPLES = 4, 32
PEER = "as written down"


def measure(rounds: int) -> Iterator[Row]:
    """A training step of the largest scenarios, and a rollout of the last of them."""
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        dataset = simulated(Path(directory))
        torch.manual_seed(0)
        model = SPEC.build(SmartConfig(), dataset)
        largest = dataset.scenarios("train")[-SCENARIOS:]
        batch, one = dataset.gather(largest), dataset.gather(largest[-1:])
    step = training(model, batch)
    with FlopCounterMode(display=False) as counter:
        step()
    times = in_turns({"millrace": step, "plain": lambda: plain(step)}, rounds)
    least = Limits.measured().seconds(counter.get_total_flops())
    ours = times["millrace"]
    yield Row(
        f"SMART step, {SCENARIOS} scenarios, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M",
        "s",
        ours,
        PEER,
        times["plain"],
        STEP_GOAL,
        share=least / statistics.median(ours),
    )

    def draw() -> None:
        rollout(model, one, RolloutConfig(samples=SAMPLES))

    times = in_turns({"millrace": draw, "plain": lambda: plain(draw)}, rounds)
    what = f"SMART rollout, {SAMPLES} samples"
    yield Row(what, "s", times["millrace"], PEER, times["plain"], ROLLOUT_GOAL)


def simulated(directory: Path) -> ScenarioDataset:
    simulate(TrafficConfig(towns=2, scenes=16), directory / "tracks")
    config, vocabulary = TokenConfig(), directory / "vocabulary.h5"
    build_vocabulary(directory / "tracks", vocabulary, config)
    tokenise(directory / "tracks", vocabulary, directory / "scenarios.h5", config)
    dataset = ScenarioDataset(directory / "scenarios.h5", ScenarioConfig(buckets=1))
    dataset.gather(dataset.scenarios("train"))  # reads the file
    return dataset


def plain(work):
    as_written = mock.patch.object(chunked, "applies", return_value=False)
    with as_written, mock.patch.object(products, "linear", functional.linear):
        return work()


def training(module: nn.Module, batch: ScenarioBatch) -> Callable[[], None]:
    """A training step, as the engine does it."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        SPEC.loss(module, batch, None).mean().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    run({"smart": measure}, __doc__)
