"""A training step and a rollout of SMART against its formula as it is written down, on one CPU core.

Two variants take turns in one process, with the same weights; a step is forecast, loss, gradient, clipping
and AdamW, of a model with 7 million parameters on simulated intersections.

plain     gathered keys and values, every pair and token embedded at once, as on a GPU
millrace  relations and attention in chunks, without padding

Run it as ``python tests/bench/bench_smart.py [--scenarios N] [--rounds N]``. The share is that of the time
of all products, as many as millrace's step has, at the rate of a large one of this core.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from bench_gino import cpu_seconds, rates, told
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from millrace.processes import keep_freed_memory
from millrace.systems.traffic.dataset import ScenarioBatch, ScenarioDataset
from millrace.systems.traffic.scenarios import build_vocabulary, tokenise
from millrace.systems.traffic.settings import ScenarioConfig, SmartConfig, TokenConfig
from millrace.systems.traffic.simulator.traffic import TrafficConfig, simulate
from millrace.systems.traffic.smart import chunked
from millrace.systems.traffic.smart.rollout import RolloutConfig, rollout
from millrace.systems.traffic.smart.spec import SPEC

STEP_GOAL, ROLLOUT_GOAL = 1.5, 2.0
SAMPLES = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenarios", type=int, default=4, help="of a batch; 4 by default")
    parser.add_argument("--rounds", type=int, default=7, help="7 by default")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        dataset = simulated(Path(directory))
        torch.manual_seed(0)
        model = SPEC.build(SmartConfig(), dataset)
        largest = dataset.scenarios("train")[-arguments.scenarios :]
        batch, one = dataset.gather(largest), dataset.gather(largest[-1:])
    print(f"SMART, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
    agents, segments = batch.kind_BA.shape[1], batch.road_token_BM.shape[1]
    print(f"  {len(batch.kind_BA)} scenarios of up to {agents} agents and {segments} segments")
    config = RolloutConfig(samples=SAMPLES)
    losses, drawn = [], []
    for variant in (plain, lambda work: work()):
        losses.append(variant(lambda: SPEC.loss(model, batch, None).detach()))
        drawn.append(variant(lambda: rollout(model, one, config).token_BSAK))
    apart = float(((losses[0] - losses[1]).abs() / losses[0]).max())
    print(f"  losses apart by {apart:.1e}, same tokens {torch.equal(*drawn)}")
    step = training(model, batch)
    with FlopCounterMode(display=False) as counter:
        step()
    median = compare("step", step, arguments.rounds, STEP_GOAL)
    operations, (rate, _) = counter.get_total_flops(), rates()
    share = operations / rate / median
    print(f"  {operations / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GF/s: share {share:.0%}", flush=True)
    what = f"rollout of {SAMPLES} samples"
    compare(what, lambda: rollout(model, one, config), arguments.rounds, ROLLOUT_GOAL)


def simulated(directory: Path) -> ScenarioDataset:
    simulate(TrafficConfig(towns=2, scenes=16), directory / "tracks")
    config, vocabulary = TokenConfig(), directory / "vocabulary.h5"
    build_vocabulary(directory / "tracks", vocabulary, config)
    tokenise(directory / "tracks", vocabulary, directory / "scenarios.h5", config)
    dataset = ScenarioDataset(directory / "scenarios.h5", ScenarioConfig(buckets=1))
    dataset.gather(dataset.scenarios("train"))  # reads the file
    return dataset


def plain(work):
    with mock.patch.object(chunked, "applies", return_value=False):
        return work()


def compare(what: str, work: Callable[[], object], rounds: int, goal: float) -> float:
    """Time both variants in turns and print the ratio; returns millrace's median in CPU seconds."""
    times = [(cpu_seconds(lambda: plain(work)), cpu_seconds(work)) for _ in range(rounds)]
    slow, fast = np.median(times, axis=0)
    ratio = statistics.median(one / other for one, other in times)
    print(
        f"  {what}: {slow:.2f} s plain, {fast:.2f} s millrace, {ratio:.2f} x; goal {goal:g}: "
        f"{told(ratio >= goal)}",
        flush=True,
    )
    return float(fast)


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
    main()
