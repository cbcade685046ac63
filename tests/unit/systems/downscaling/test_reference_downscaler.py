"""The reference's schedule, trained on the demo data, fails every bar; ours with its network does not."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from millrace.data.split import SplitConfig
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.dataset import BlockDataset
from millrace.systems.downscaling.ensembles import evaluate, sphere_of
from millrace.systems.downscaling.sampling import SamplerConfig
from millrace.systems.downscaling.scores import DownscalingScores
from millrace.systems.downscaling.settings import BlockDatasetConfig
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.training.deadline import Deadline
from millrace.training.engine import Observer
from millrace.training.segment import build_trainer
from millrace.training.store import weights_of

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

from reference_downscaler import ALPHA_BAR, Reference, context_of

MEMBERS, EPOCHS = 2, 10

pytestmark = pytest.mark.nightly  # a minute and a half


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """R2B04, 80 blocks of 256 cells, as the reference has them."""
    directory = tmp_path_factory.mktemp("globe")
    write_climate(ClimateConfig(level=4, steps=150), directory / "raw")
    split = SplitConfig(train=0.8, validation=0.1, gap=4)
    extract_blocks(directory / "raw", directory / "blocks.h5", BlockConfig(levels=4), split)
    return directory / "blocks.h5"


@pytest.fixture(scope="module")
def dataset(blocks):
    return BlockDataset(blocks, BlockDatasetConfig())


def fields(dataset, steps):
    """Cells [T, M, 256] and block means [T, M], physical."""
    batch = dataset.at_times(np.asarray(steps))
    coarse = dataset.coarse_physical(batch.coarse_BMV)[..., 0]
    residual = dataset.to_physical(batch.y_BNV)[..., 0].reshape(*coarse.shape, -1)
    return coarse[..., None] + residual, coarse


@pytest.fixture(scope="module")
def reference(dataset):
    torch.manual_seed(0)
    fine, coarse = fields(dataset, dataset.times("train"))
    made = Reference(float(fine.mean()), float(fine.std()))
    samples = made.normalised(fine.reshape(-1, 256))
    context = made.normalised(context_of(coarse).reshape(-1, 7))
    losses = [made.epoch(samples, context) for _ in range(EPOCHS)]
    assert losses[-1] < 0.8 * losses[0], "it does learn to tell noise from fields"
    return made


@pytest.fixture(scope="module")
def scores(dataset, reference):
    """Of the reference, with its baselines."""
    step = int(dataset.times("test")[0])
    truth, coarse = fields(dataset, [step])
    context = reference.normalised(context_of(coarse)[0])
    drawn = [reference.sample(context).numpy() for _ in range(MEMBERS)]
    ensemble = np.stack(drawn).reshape(MEMBERS, -1) * reference.std + reference.mean
    made = DownscalingScores(sphere_of(dataset), float(dataset.normalisation.increment_std_V[0]))
    made.update(truth.ravel(), ensemble, coarse[0])
    copy = float(np.abs(truth - coarse[..., None]).mean())
    return made.result() | {"copy_mae": copy, "copy_rmse": float((truth - coarse[..., None]).std())}


def test_its_training_never_sees_noise_alone():
    assert float(ALPHA_BAR[-1]) == pytest.approx(0.603, abs=1e-3)


def test_the_reference_fails_the_bars(scores):
    assert scores["rmse"] > scores["copy_rmse"], "copying the block mean is better"
    assert scores["crps"] > scores["copy_mae"], "also as an ensemble"
    assert scores["conservation"] > 1, "block means are not kept"
    assert scores["lag1"] < scores["lag1_truth"] - 0.1, "neighbours are too unlike each other"
    assert max(scores["spectrum_ratio"][-20:]) > 2, "there is noise at small scales"


class Quiet(Observer):
    def on_step(self, *_): ...

    def on_epoch(self, record): ...

    def on_state(self, trainer, stopping): ...


def test_the_same_network_with_other_noise_passes(dataset, blocks, alone):
    definition = {
        "data": {},
        "model": {"name": "downscaler", "architecture": "mlp"},
        "train": {"global_batch": 2, "learning_rate": 1e-3, "ema": 0.98},
    }
    trainer, _ = build_trainer(definition, {"blocks": str(blocks)}, 0, alone)
    trainer.run(EPOCHS, Deadline(), Quiet())
    trainer.module.load_state_dict(weights_of(trainer.state()))
    sampler = SamplerConfig(members=MEMBERS)
    result, _ = evaluate(trainer.module, dataset, "test", sampler, times=1)
    forecasts = result["tas"]
    assert forecasts["model"]["crps"] < 0.8 * forecasts["block_mean"]["mae"]
    assert forecasts["model"]["conservation"] < 1e-5
