"""Training of the fully connected downscaler: the reference's loop against Millrace's engine, on one core.

A pass (`downscaler-pass`): both see 3,840 blocks of 256 cells (48 times of R2B04), the buffer of the
reference, in every round:

reference  batches of 16 blocks in a Python loop, Adam, the loss fetched at every step
others     the engine with `architecture: mlp`, batches of 4 or 12 whole globes (80 blocks each), whose
           products of matrices are in the precision that is named

They take turns in one process; figures are medians of CPU seconds. Larger batches take fewer steps, so
that this is time for data seen.

To the same loss (`downscaler-loss`): on the 27,840 blocks of the demo's training period, the loop of the
reference trains the network of Millrace with its noise for some passes, at its own batch and rate. What
it comes to on the validation period is the target, and the engine trains until it is there, with a
level of noise for each block. Both are validated with one noise, which is not timed. A round is a seed.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from reference_downscaler import BATCH, Reference, ReferenceNet
from rows import Row, in_turns, run
from torch import Tensor, nn

from millrace.data.split import SplitConfig
from millrace.systems.downscaling.block_mlp import context_of
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.dataset import BlockBatch, BlockDataset
from millrace.systems.downscaling.diffusion import (
    SIGMA_DATA,
    NoiseEmbedding,
    denoising_loss,
    loss_weight,
    preconditioning,
    with_noise,
)
from millrace.systems.downscaling.settings import BlockDatasetConfig, DownscalerConfig
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.training.distributed import Ranks
from millrace.training.engine import Trainer
from millrace.training.segment import build_trainer

TIMES, BLOCKS = 48, 80


VARIANTS: dict[tuple[str, int], float | None] = {
    ("float32", 4): None,
    ("float32", 12): 8,
    ("bfloat16", 12): 12,
}
"""Precision and globes of a batch -> how many times faster than the reference it is to be."""
TO_LOSS = {"float32": 8, "bfloat16": 12}
"""Precision -> the same, to the same loss."""
PASSES, GLOBES, RATE = 3, 4, 2e-3
"""Of the reference; of a batch of Millrace, and its learning rate."""
CHECKED, MOST_PASSES = 10, 12
"""Steps after which Millrace is validated; passes after which it is given up."""
OF_BLOCKS = DownscalerConfig(architecture="mlp", noise_levels="block")


def measure(rounds: int) -> Iterator[Row]:
    """CPU time to see all blocks once."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        split = SplitConfig(train=0.8, validation=0.1, gap=0)
        blocks = make_blocks(Path(directory), 60, split)  # exactly the times of a round
        variants = {"reference": reference_round()}
        for precision, batch in VARIANTS:
            variants[f"{precision} {batch}"] = engine_round(blocks, batch, precision)
        times = in_turns(variants, rounds)
    for (precision, batch), goal in VARIANTS.items():
        what = f"downscaler, {TIMES * BLOCKS:,} blocks, {precision}, {batch} globes a step"
        ours = times[f"{precision} {batch}"]
        yield Row(what, "s", ours, "reference loop", times["reference"], goal)


def measure_to_loss(rounds: int) -> Iterator[Row]:
    """CPU time to the loss that the reference comes to."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in ("reference", *TO_LOSS)}
    with tempfile.TemporaryDirectory() as directory:
        split = SplitConfig(train=0.75, validation=0.1, gap=8)
        blocks = make_blocks(Path(directory), 480, split)
        dataset = BlockDataset(blocks, BlockDatasetConfig())
        numbers = np.arange(len(dataset.times("validation")))
        validation = with_noise(OF_BLOCKS, dataset.batch("validation", 0, numbers), numbers)
        for seed in range(rounds):
            seconds, target = reference_loss(dataset, validation, seed)
            times["reference"].append(seconds)
            for precision in TO_LOSS:
                trainer = trainer_of(blocks, GLOBES, precision, seed, RATE, noise_levels="block")
                times[precision].append(seconds_to(target, trainer, validation))
    for precision, goal in TO_LOSS.items():
        what = f"downscaler, to the same loss, {precision}, {GLOBES} globes a step"
        yield Row(what, "s", times[precision], "reference loop", times["reference"], goal)


def make_blocks(directory: Path, steps: int, split: SplitConfig) -> Path:
    """`blocks.h5` of so many times."""
    write_climate(ClimateConfig(level=4, steps=steps), directory / "raw")
    blocks = directory / "blocks.h5"
    extract_blocks(directory / "raw", blocks, BlockConfig(levels=4), split)
    return blocks


def reference_round() -> Callable[[], None]:
    model = Reference(0.0, 1.0)
    fine, context = torch.randn(TIMES * BLOCKS, 256), torch.randn(TIMES * BLOCKS, 7)

    def run() -> None:
        model.epoch(fine, context)

    return run


def engine_round(blocks: Path, batch: int, precision: str) -> Callable[[], None]:
    trainer = trainer_of(blocks, batch, precision, 0, ema=0.99)

    def run() -> None:
        samples = 0
        for global_batch in trainer.batches(0):
            trainer.train_step(global_batch)
            trainer.step += 1
            samples += global_batch.size
        assert samples == TIMES

    return run


def trainer_of(
    blocks: Path,
    batch: int,
    precision: str,
    seed: int,
    rate: float = 1e-3,
    ema: float | None = None,
    noise_levels: str = "sample",
) -> Trainer:
    definition = {
        "data": {},
        "model": {"name": "downscaler", "architecture": "mlp", "noise_levels": noise_levels},
        "train": {
            "global_batch": batch,
            "learning_rate": rate,
            "schedule": {"kind": "constant"},
            "ema": ema,
            "precision": precision,
        },
    }
    alone = Ranks(0, 1, torch.device("cpu"))
    return build_trainer(definition, {"blocks": str(blocks)}, seed, alone)[0]


def reference_loss(dataset: BlockDataset, validation: BlockBatch, seed: int) -> tuple[float, float]:
    """CPU seconds of the reference's loop, and the validation loss it comes to."""
    torch.manual_seed(seed)
    net = ReferenceNet(9, NoiseEmbedding(OF_BLOCKS.embedding), OF_BLOCKS.embedding)
    optimiser = torch.optim.Adam(net.parameters(), 1e-4)
    train = dataset.at_times(dataset.times("train"))
    fine_SC, context_SF = of_blocks(train.y_BNV), context_of(train).flatten(0, 1)

    def loss_of(fine_SC: Tensor, context_SF: Tensor, sigma_S1: Tensor, noise_SC: Tensor) -> Tensor:
        skip, out, into = preconditioning(sigma_S1)
        noisy_SC = SIGMA_DATA * fine_SC + sigma_S1 * noise_SC
        raw_SC = net(into * noisy_SC, context_SF, sigma_S1[:, 0].log() / 4)
        error_SC = skip * noisy_SC + out * raw_SC - SIGMA_DATA * fine_SC
        return (loss_weight(sigma_S1) * error_SC.square()).mean()

    begun = time.process_time()
    for _ in range(PASSES):
        for chosen in torch.randperm(len(fine_SC)).split(BATCH):
            level_S1 = OF_BLOCKS.noise_std * torch.randn(len(chosen), 1)
            sigma_S1 = (OF_BLOCKS.noise_mean + level_S1).exp()
            fine = fine_SC[chosen]
            loss = loss_of(fine, context_SF[chosen], sigma_S1, torch.randn_like(fine))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            loss.item()
    seconds = time.process_time() - begun
    assert validation.sigma_BL is not None
    assert validation.noise_BNV is not None
    given = of_blocks(validation.y_BNV), context_of(validation).flatten(0, 1)
    noise = validation.sigma_BL.reshape(-1, 1), of_blocks(validation.noise_BNV)
    with torch.no_grad():
        return seconds, float(loss_of(*given, *noise))


def of_blocks(x_BNV: Tensor) -> Tensor:
    """Cells of each block at each time, [S, C]."""
    return x_BNV.reshape(-1, x_BNV.shape[1] // BLOCKS)


def seconds_to(target: float, trainer: Trainer, validation: BlockBatch) -> float:
    """CPU seconds of training until the validation loss is as low as ``target``."""
    # Without features of cells, which it does not take.
    given = replace(validation, features_BNF=validation.features_BNF[..., :0])
    seconds, begun, loss = 0.0, time.process_time(), math.inf
    while trainer.position.epoch < MOST_PASSES:
        for batch in trainer.batches(trainer.position.epoch):
            trainer.train_step(batch)
            trainer.step += 1
            if trainer.step % CHECKED == 0:
                seconds += time.process_time() - begun
                with torch.no_grad():
                    loss = float(denoising_loss(trainer.module, given, None).mean())
                if loss <= target:
                    return seconds
                begun = time.process_time()
    sys.exit(f"the loss is {loss:.3f} after {MOST_PASSES} passes, not {target:.3f}")


if __name__ == "__main__":
    run({"downscaler-pass": measure, "downscaler-loss": measure_to_loss}, __doc__)
