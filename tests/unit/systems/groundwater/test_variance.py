"""Weights of points by the variance of their concentration in time."""

import numpy as np
import pytest
import torch

from millrace.errors import ConfigError
from millrace.systems.groundwater.patch_dataset import PatchDataset
from millrace.systems.groundwater.settings import WindowConfig
from millrace.systems.groundwater.variance import variance_weights
from millrace.training.segment import build_trainer

NAMES = ["head", "mass_concentration"]


def test_formula():
    state = torch.randn(200, 30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state[..., 1] *= torch.linspace(0.1, 5, 200, dtype=torch.float64)[:, None]
    variance = state[..., 1].numpy().var(axis=1)
    highest = np.percentile(variance, 99)
    clipped = np.minimum(variance, highest)
    expected = 0.25 + 0.75 * np.log1p(clipped / clipped.mean()) / np.log1p(highest / clipped.mean())
    weight = variance_weights(state, NAMES)
    assert weight[:, 1].numpy() == pytest.approx(expected / expected.mean(), rel=1e-5)
    assert float(weight[:, 1].mean()) == pytest.approx(1.0, rel=1e-6)
    assert not weight[:, 0].any()


def test_points_that_never_change_weigh_alike():
    weight = variance_weights(torch.ones(5, 9, 2), NAMES)
    assert weight[:, 1].tolist() == [1.0] * 5
    assert not variance_weights(torch.randn(5, 9, 1), ["head"]).any()


@pytest.mark.parametrize("kind", ["patches", "planes"])
def test_only_samples_with_a_concentration_are_trained_with_a_variance_weight(
    samples, plane_samples, definition, alone, kind
):
    files, data, model = {
        "patches": (samples, definition["data"], definition["model"]),
        "planes": (
            {"planes": plane_samples},
            {"input_steps": 4, "output_steps": 4, "radius": 0.4},
            {"name": "gfno", "gno_channels": 2, "modes": [2, 2, 2], "hidden": 4, "layers": 1},
        ),
    }[kind]
    train = {"global_batch": 4, "loss": {"kind": "mse", "variance_weight": 0.5}}
    made = {"data": {**data, "variables": NAMES}, "model": model, "train": train}
    trainer, _ = build_trainer(made, files, 0, alone)
    assert trainer.dataset.weighted_variable == "mass_concentration"
    made["data"]["variables"] = ["head"]
    with pytest.raises(ConfigError, match="variance_weight: these samples hold no variable"):
        build_trainer(made, files, 0, alone)


def test_a_dataset_looks_at_the_core_in_the_training_period_alone(samples):
    config = WindowConfig(variables=tuple(NAMES), input_steps=3, output_steps=2)
    dataset = PatchDataset(**samples, config=config)
    batch = dataset.batch("train", 1, np.arange(2))
    states = dataset.core_states(1, np.arange(50))
    assert torch.equal(batch.variance_weight_KV, variance_weights(states, NAMES))
    assert len(batch.variance_weight_KV) == batch.geometry.n_core
    everything = dataset.core_states(1, np.arange(90))
    assert not torch.equal(batch.variance_weight_KV, variance_weights(everything, NAMES))
