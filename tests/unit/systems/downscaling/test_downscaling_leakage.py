"""Nothing of validation and test data reaches what is trained on, nor the baselines."""

import shutil

import netCDF4
import numpy as np
import pytest
import torch

from millrace.data.split import SplitConfig
from millrace.systems.downscaling import diffusion
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.dataset import BlockDataset
from millrace.systems.downscaling.ensembles import _baselines
from millrace.systems.downscaling.settings import BlockDatasetConfig, DownscalerConfig
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate

SPLIT = SplitConfig(train=0.5, validation=0.25, gap=2)
TRAIN = 8  # of 20 times, less two gaps


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Samples before and after all times behind the training period were changed."""
    base = tmp_path_factory.mktemp("leakage")
    write_climate(ClimateConfig(level=2, steps=20, steps_per_file=10), base / "raw")
    made = []
    for name in ("before", "after"):
        if name == "after":
            for number, path in enumerate(sorted((base / "raw/output").iterdir())):
                with netCDF4.Dataset(path, "r+") as file:
                    first = max(0, TRAIN - 10 * number)
                    file["tas"][first:] = 560 - file["tas"][first:]
        extract_blocks(base / "raw", base / name / "blocks.h5", BlockConfig(levels=2), SPLIT)
        made.append(BlockDataset(base / name / "blocks.h5", BlockDatasetConfig(season=True)))
    shutil.rmtree(base)
    return made


def test_later_fields_change_no_training_sample_and_no_statistic(datasets):
    before, after = datasets
    assert len(before.times("train")) == TRAIN
    assert before.normalisation.to_json() == after.normalisation.to_json()
    assert np.array_equal(before.climatology_NV, after.climatology_NV)
    assert torch.equal(before.geometry().static_NF, after.geometry().static_NF)
    one, other = (dataset.batch("train", 0, np.arange(TRAIN)) for dataset in datasets)
    for name in ("y_BNV", "coarse_BMV", "features_BNF", "clock_BF"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    one, other = (dataset.batch("test", 0, np.arange(2)) for dataset in datasets)
    assert not torch.equal(one.y_BNV, other.y_BNV)


def test_later_fields_change_no_baseline(datasets):
    coarse = np.random.default_rng(0).normal(280, 5, (3, 80))
    makers = [_baselines(dataset, 0) for dataset in datasets]
    for name in makers[0]:
        one, other = (made[name](coarse, np.arange(3.0)) for made in makers)
        assert np.array_equal(one, other), name


def test_later_fields_do_not_change_the_trained_model(datasets):
    config = DownscalerConfig(channels=(8, 8, 8), embedding=8)
    states = []
    for dataset in datasets:
        torch.manual_seed(0)
        module = diffusion.SPEC.build(config, dataset)
        optimiser = torch.optim.Adam(module.parameters(), 1e-3)
        for seed in range(3):
            batch = dataset.batch("train", 0, np.array([seed, TRAIN - 1]))
            noisy = diffusion.SPEC.add_noise(config, batch, np.array([seed, 9]))
            optimiser.zero_grad()
            diffusion.SPEC.loss(module, noisy, None).mean().backward()
            optimiser.step()
        states.append(module.state_dict())
    for name, values in states[0].items():
        assert torch.equal(values, states[1][name]), name
