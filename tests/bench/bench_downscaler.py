"""Training of the fully connected downscaler: the reference's loop against Millrace's engine, on one core.

Both see 3,840 blocks of 256 cells (48 times of R2B04), the buffer of the reference, in every round:

reference  batches of 16 blocks in a Python loop, Adam, the loss fetched at every step
others     the engine with `architecture: mlp`, batches of 4 or 12 whole globes (80 blocks each), whose
           products of matrices are in the precision that is named

They take turns in one process; figures are medians of CPU seconds. Larger batches take fewer steps, so
this is time for data seen, not for a loss reached.

Run it as ``python tests/bench/bench_downscaler.py``.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reference_downscaler import Reference

from millrace.data.split import SplitConfig
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.training.distributed import Ranks
from millrace.training.segment import build_trainer

TIMES, BLOCKS = 48, 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        variants = {"reference": reference_round()}
        blocks = make_blocks(Path(directory))
        for precision, batch in (("float32", 4), ("float32", 12), ("bfloat16", 12)):
            variants[f"{precision} {batch}"] = engine_round(blocks, batch, precision)
        times = take_turns(variants, rounds)
    print(f"{TIMES * BLOCKS:,} blocks of 256 cells, one core, {torch.__version__}")
    print("variant        CPU s    reference / variant   optimiser steps")
    steps = dict.fromkeys(variants, TIMES * BLOCKS // 16) | {
        name: TIMES // int(name.split()[1]) for name in list(variants)[1:]
    }
    base = statistics.median(times["reference"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:12}  {median:6.3f}    {base / median:6.1f} x   {steps[name]:20}")


def take_turns(variants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            started = time.process_time()
            run()
            if turn:  # the first round warms up
                times[name].append(time.process_time() - started)
    return times


def make_blocks(directory: Path) -> Path:
    """`blocks.h5` whose training period has exactly the times of a round."""
    write_climate(ClimateConfig(level=4, steps=60), directory / "raw")
    blocks = directory / "blocks.h5"
    split = SplitConfig(train=0.8, validation=0.1, gap=0)
    extract_blocks(directory / "raw", blocks, BlockConfig(levels=4), split)
    return blocks


def reference_round() -> Callable[[], None]:
    model = Reference(0.0, 1.0)
    fine, context = torch.randn(TIMES * BLOCKS, 256), torch.randn(TIMES * BLOCKS, 7)

    def run() -> None:
        model.epoch(fine, context)

    return run


def engine_round(blocks: Path, batch: int, precision: str) -> Callable[[], None]:
    definition = {
        "data": {},
        "model": {"name": "downscaler", "architecture": "mlp"},
        "train": {"global_batch": batch, "ema": 0.99, "precision": precision},
    }
    alone = Ranks(0, 1, torch.device("cpu"))
    trainer, _ = build_trainer(definition, {"blocks": str(blocks)}, 0, alone)

    def run() -> None:
        samples = 0
        for global_batch in trainer.batches(0):
            trainer.train_step(global_batch)
            trainer.step += 1
            samples += global_batch.size
        assert samples == TIMES

    return run


if __name__ == "__main__":
    main()
