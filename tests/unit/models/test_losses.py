"""Losses against closed forms, at zero, and sample by sample."""

import math

import pytest
import torch

from millrace.errors import ConfigError
from millrace.models.losses import field_loss
from millrace.models.settings import LossConfig

MSE, RELATIVE = LossConfig(kind="mse"), LossConfig(kind="relative_l2", eps=0.5)
K, B, T, V = 7, 3, 4, 2
SAME = torch.ones(K, V)  # weights, which count with a variance_weight alone


@pytest.fixture
def fields():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, K, B, T, V, dtype=torch.float64, generator=generator)


def test_mse_is_in_units_of_each_variables_change() -> None:
    target = torch.zeros(K, B, T, V)
    prediction = target.clone()
    prediction[..., 0], prediction[..., 1] = 3.0, 0.02
    prediction[:, 1] *= 2
    loss = field_loss(prediction, target, torch.tensor([1.5, 0.01]), MSE, SAME)
    assert loss.tolist() == pytest.approx([4.0, 16.0, 4.0])


def test_relative_l2_is_the_mean_of_the_points_ratios() -> None:
    target, prediction = torch.zeros(2, 1, T, V), torch.zeros(2, 1, T, V)
    target[0, 0, 0], prediction[0, 0, 0] = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])
    prediction[1, 0, 2, 1] = 2.0  # where the target is zero, eps alone is in the denominator
    loss = field_loss(prediction, target, torch.ones(V), RELATIVE, SAME)
    eps = 0.5 * math.sqrt(T * V)
    assert loss.tolist() == pytest.approx([(1 / (5 + eps) + 2 / eps) / 2])


@pytest.mark.parametrize("config", [MSE, RELATIVE])
def test_closed_form(fields, config) -> None:
    prediction, target = fields
    scale = torch.tensor([0.3, 2.0], dtype=torch.float64)
    expected = []
    for b in range(B):
        error = (prediction - target)[:, b].numpy()
        if config is MSE:
            expected.append(float(((error / scale.numpy()) ** 2).mean()))
            continue
        norm = (target[:, b].numpy() ** 2).sum(axis=(1, 2)) ** 0.5
        ratio = (error**2).sum(axis=(1, 2)) ** 0.5 / (norm + 0.5 * (T * V) ** 0.5)
        expected.append(float(ratio.mean()))
    assert field_loss(prediction, target, scale, config, SAME).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("config", [MSE, RELATIVE])
@pytest.mark.parametrize("exact", [True, False])
def test_gradients_are_finite_at_zero(config, exact) -> None:
    target = torch.zeros(K, B, T, V)
    prediction = (target + (0.0 if exact else 1e-20)).requires_grad_()
    loss = field_loss(prediction, target, torch.ones(V), config, SAME)
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(prediction.grad).all())
    assert float(loss.detach().max()) < 1e-5


@pytest.mark.parametrize("config", [MSE, RELATIVE])
def test_a_sample_does_not_see_the_others(fields, config) -> None:
    prediction, target = fields
    together = field_loss(prediction, target, torch.ones(V), config, SAME)
    assert together.shape == (B,)
    for b in range(B):
        alone = field_loss(
            prediction[:, b : b + 1], target[:, b : b + 1], torch.ones(V), config, SAME
        )
        assert float(alone) == pytest.approx(float(together[b]))
    inputs = prediction.clone().requires_grad_()
    field_loss(inputs, target, torch.ones(V), config, SAME)[1].backward()
    assert float(inputs.grad[:, [0, 2]].abs().max()) == 0
    assert float(inputs.grad[:, 1].abs().min()) > 0


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"train\.loss\.kind: expected one of relative_l2, mse, mae, got 'l1'"
    ):
        LossConfig.parse({"kind": "l1"}, "train.loss")


@pytest.mark.parametrize("kind", ["mse", "relative_l2"])
def test_variance_term_is_added_sample_by_sample(fields, kind) -> None:
    prediction, target = fields
    weight = torch.rand(K, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight[:, 0] = 0
    plain, weighted = LossConfig(kind=kind), LossConfig(kind=kind, variance_weight=0.7)
    difference = field_loss(prediction, target, torch.ones(V), weighted, weight) - field_loss(
        prediction, target, torch.ones(V), plain, weight
    )
    error = (prediction - target).numpy()[..., 1]
    expected = 0.7 * ((weight.numpy()[:, 1, None, None] * error**2).mean(axis=(0, 2)) + 1e-8) ** 0.5
    assert difference.tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("shape", [(K, 4, 1, 1), (K, 4, V), (1, 4, 1, V)])
def test_a_forecast_of_another_shape_is_refused_even_if_it_broadcasts(shape):
    target = torch.ones(K, 4, 1, V)
    with pytest.raises(ConfigError, match=r"forecast has the shape .*, the target \("):
        field_loss(torch.ones(shape), target, torch.ones(V), MSE, SAME)
