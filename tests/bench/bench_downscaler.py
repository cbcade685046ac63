"""Training of the fully connected downscaler: the reference's loop against Millrace's engine, on one core.

Both see 3,840 blocks of 256 cells (48 times of R2B04), the buffer of the reference, in every round:

reference  batches of 16 blocks in a Python loop, Adam, the loss fetched at every step
others     the engine with `architecture: mlp`, batches of 4 or 12 whole globes (80 blocks each), whose
           products of matrices are in the precision that is named

They take turns in one process; figures are medians of CPU seconds. Larger batches take fewer steps, so
this is time for data seen, not for a loss reached.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from reference_downscaler import Reference
from rows import Row, in_turns, run

from millrace.data.split import SplitConfig
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.training.distributed import Ranks
from millrace.training.segment import build_trainer

TIMES, BLOCKS = 48, 80


VARIANTS: dict[tuple[str, int], float | None] = {
    ("float32", 4): None,
    ("float32", 12): 8,
    ("bfloat16", 12): 12,
}
"""Precision and globes of a batch -> how many times faster than the reference it is to be."""


def measure(rounds: int) -> Iterator[Row]:
    """CPU time to see all blocks once."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        blocks = make_blocks(Path(directory))
        variants = {"reference": reference_round()}
        for precision, batch in VARIANTS:
            variants[f"{precision} {batch}"] = engine_round(blocks, batch, precision)
        times = in_turns(variants, rounds)
    for (precision, batch), goal in VARIANTS.items():
        what = f"downscaler, {TIMES * BLOCKS:,} blocks, {precision}, {batch} globes a step"
        ours = times[f"{precision} {batch}"]
        yield Row(what, "s", ours, "reference loop", times["reference"], goal)


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
    run({"downscaler": measure}, __doc__)
