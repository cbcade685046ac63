"""Aurora: published sizes, windows that wrap, what a chain of parts gives, rollouts, LoRA."""

import dataclasses

import numpy as np
import pytest
import torch

from millrace.errors import ConfigError
from millrace.systems.weather.aurora import perceiver
from millrace.systems.weather.aurora.config import PUBLISHED, TINY, AuroraConfig
from millrace.systems.weather.aurora.encodings import place_encodings
from millrace.systems.weather.aurora.loss import channel_weights, weighted_mae
from millrace.systems.weather.aurora.model import Aurora, AuroraPart, drop, unit_costs, unit_names
from millrace.systems.weather.aurora.perceiver import Grid, patches, unpatched
from millrace.systems.weather.aurora.spec import SPEC
from millrace.systems.weather.aurora.swin import (
    PatchMerging,
    PatchSplitting,
    from_windows,
    to_windows,
    window_labels,
)
from millrace.systems.weather.dataset import WeatherBatch
from millrace.training.acceleration import checkpoint_activations

CHANNELS = 4 + 5 * 4


def build(config=TINY, shape=(32, 64), levels=4, seed=0):
    torch.manual_seed(seed)
    rows, columns = shape
    latitude = np.linspace(88, -88, rows)
    position, scale = (
        place_encodings(
            latitude, np.arange(columns) * 360 / columns, config.patch_size, config.embed_dim
        )
        if config.embed_dim < 256
        else [torch.empty(rows * columns // config.patch_size**2, config.embed_dim)] * 2
    )
    grid = Grid(
        position_ND=position,
        scale_ND=scale,
        level_L=torch.linspace(50, 1000, levels, dtype=torch.float64),
        static_FIJ=torch.rand(3, rows, columns),
        surface=4,
        air=5,
        hours=6.0,
    )
    return Aurora(config, grid, shape, 2, torch.full((4 + 5 * levels,), 0.2))


def perturbed(model, seed=1):
    """Away from the initial weights, where blocks nearly vanish."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def make_batch(samples=2, steps=1, seed=2):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(samples, 2 + steps, CHANNELS, 32, 64, generator=generator)
    return WeatherBatch(
        past_BTCIJ=states[:, :2],
        hours_B=torch.arange(samples, dtype=torch.float64) * 6 + 3000,
        y_BKCIJ=states[:, 2:],
        scale_V=torch.full((CHANNELS,), 0.2),
        weight_B=torch.ones(samples),
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_number_of_parameters(name):
    config, published = PUBLISHED[name]
    shape, levels = ((32, 64), 4) if name == "tiny" else ((720, 1440), 13)
    with torch.device("meta"):
        model = build(config, shape, levels)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(published, rel=0.01)


def test_windows_and_patches_are_undone():
    x = torch.arange(2 * 4 * 6 * 8 * 3.0).reshape(2, 4, 6, 8, 3)
    assert torch.equal(from_windows(to_windows(x, (2, 3, 4)), (2, 3, 4), (4, 6, 8)), x)
    field = torch.arange(2 * 1 * 3 * 8 * 12.0).reshape(2, 1, 3, 8, 12)
    assert torch.equal(unpatched(patches(field, 4), 4, 2), field[:, 0])


def test_attention_wraps_around_in_longitude_only():
    """A shifted window joins the last columns to the first ones, never the poles or top and bottom."""
    size, window, shift = (2, 8, 8), (2, 4, 4), (0, 2, 2)
    labels = window_labels(size, window, shift)
    place = np.arange(8)[:, None] * 8 + np.arange(8)
    place = np.stack([place, place])
    rolled = torch.from_numpy(np.roll(place, (-2, -2), (1, 2)))[None, ..., None]
    places = to_windows(rolled, window)[..., 0].numpy()
    seen = {
        (int(a), int(b))
        for window_places, window_labels_ in zip(places, labels, strict=True)
        for a, la in zip(window_places, window_labels_, strict=True)
        for b, lb in zip(window_places, window_labels_, strict=True)
        if la == lb
    }
    assert (7 + 8 * 3, 0 + 8 * 3) in seen, "the last column sees the first"
    assert not any({a // 8, b // 8} == {0, 7} for a, b in seen), "the poles do not see each other"


def test_padding_reaches_no_token():
    labels = window_labels((1, 5, 4), (1, 4, 4), (0, 0, 0))
    assert (labels == -1).sum() == 3 * 4
    assert window_labels((2, 8, 8), (2, 4, 4), (0, 0, 0)) is None


def test_turning_the_globe_by_a_window_turns_the_forecast():
    """Longitude is periodic: without positions, the network does not know where it begins."""
    model = perturbed(build()).eval()
    model.encoder.position_ND.zero_()
    model.encoder.static_FIJ.zero_()
    batch = make_batch(1)
    turned = dataclasses.replace(batch, past_BTCIJ=batch.past_BTCIJ.roll(64 // 2, -1))
    with torch.no_grad():
        one, other = model(batch), model(turned)
    assert torch.allclose(one.roll(64 // 2, -1), other, atol=1e-4)
    assert not torch.allclose(one, other, atol=1e-2)


@pytest.mark.parametrize("cut", [1, 2, 4, 6, 8, 9])
def test_parts_give_what_the_whole_gives(cut):
    model, batch = perturbed(build()), make_batch(steps=2)
    inputs = {"past_BTCIJ": batch.past_BTCIJ, "hours_B": batch.hours_B}
    first, second = perturbed(build()), perturbed(build())
    for unit in range(model.units):
        drop(first if unit >= cut else second, unit)
    carry = ()
    for step in range(2):
        for part, begin, end in ((first, 0, cut), (second, cut, model.units)):
            out = AuroraPart(part, begin, end, step, 2)(*carry, **inputs)
            carry = out if isinstance(out, tuple) else (out,)
    assert torch.equal(carry[0], model(batch))
    names = {n for part in (first, second) for n, _ in part.named_parameters()}
    assert names == {n for n, _ in model.named_parameters()}
    assert sum(len(list(p.parameters())) for p in (first, second)) == len(names)


def test_costs_are_the_operations_of_the_units():
    model, batch = build(), make_batch(samples=1)
    costs = dict(zip(unit_names(model), unit_costs(model), strict=True))
    layers = dict.fromkeys(costs, 0)

    def count(unit, layer):
        def hook(_, given, out):
            layers[unit] += 2 * layer.in_features * out.numel()

        return hook

    for unit in costs:
        for layer in model.get_submodule(unit).modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_hook(count(unit, layer))
    model(batch)
    attends = {
        n for n in costs if not isinstance(model.get_submodule(n), (PatchMerging, PatchSplitting))
    }
    for unit, cost in costs.items():
        if unit in attends:
            assert layers[unit] < cost < 1.3 * layers[unit], unit
        else:
            assert cost == layers[unit], unit


def test_perceivers_give_the_same_on_some_patches_at_a_time(monkeypatch):
    def passed():
        model, batch = perturbed(build()), make_batch()
        calls = []
        model.decoder.aggregation.register_forward_pre_hook(lambda *_: calls.append(1))
        checkpoint_activations(model, SPEC.recomputed)
        forecast = model(batch)
        forecast.square().mean().backward()
        return forecast.detach(), [p.grad for p in model.parameters()], len(calls)

    whole, gradients, _ = passed()
    monkeypatch.setattr(perceiver, "PATCHES_AT_ONCE", 100)
    parts, others, calls = passed()
    assert calls >= 3  # of the 2 x 128 patches
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)


def test_time_advances_with_the_rollout():
    model, batch = perturbed(build()).eval(), make_batch(steps=2)
    with torch.no_grad():
        both = model(batch)
        later = dataclasses.replace(
            batch,
            past_BTCIJ=torch.cat([batch.past_BTCIJ[:, 1:], both[:, :1]], 1),
            hours_B=batch.hours_B + 6,
            y_BKCIJ=batch.y_BKCIJ[:, 1:],
        )
        assert torch.allclose(model(later)[:, 0], both[:, 1], atol=1e-6)
        stale = dataclasses.replace(later, hours_B=batch.hours_B)
        assert not torch.allclose(model(stale)[:, 0], both[:, 1], atol=1e-4)


def test_push_forward_cuts_time():
    gradients = []
    for push_forward in (False, True):
        model = perturbed(build(TINY.replaced(push_forward=push_forward)))
        batch = make_batch(1, steps=2)
        past = batch.past_BTCIJ.clone().requires_grad_()
        forecast = model(dataclasses.replace(batch, past_BTCIJ=past))
        forecast[:, 1].sum().backward()
        gradients.append(past.grad[:, 0].abs().max())
    assert gradients[0] > 0
    assert gradients[1] == 0


def test_lora_begins_as_the_base_and_trains_nothing_else():
    base, adapted = build(), build(TINY.replaced(lora_rank=2))
    missing = adapted.load_state_dict(base.state_dict(), strict=False)
    assert all(".lora_" in name for name in missing.missing_keys)
    assert not missing.unexpected_keys
    batch = make_batch(1)
    assert torch.allclose(base(batch), adapted(batch), atol=1e-5)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)


def test_loss_is_that_of_the_paper():
    surface, air = ("2t", "msl"), ("z", "t")
    weight = channel_weights(surface, air, 2, "pretraining")
    forecast = torch.zeros(1, 1, 6, 4, 8)
    target = torch.arange(1.0, 7).reshape(1, 1, 6, 1, 1).expand(1, 1, 6, 4, 8)
    by_hand = (0.25 * (3.0 * 1 + 1.5 * 2) + 2.8 * (3 + 4) / 2 + 1.7 * (5 + 6) / 2) / 4
    assert float(weighted_mae(forecast, target, weight)) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("encoder_heads", [3, 8, 16], "model: encoder_heads: 3 heads do not divide"),
        ("latent_levels", 1, "latent_levels: expected a whole number from 2"),
        ("head", "none", "model.head: expected one of residual, direct, got 'none'"),
        ("drop_path", 1.0, "drop_path"),
    ],
)
def test_refuses(key, value, told):
    with pytest.raises(ConfigError, match=told):
        AuroraConfig.parse({key: value}, "model")
