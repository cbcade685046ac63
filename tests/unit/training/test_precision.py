"""Half precision in the layers: results near those of float32, and what stays in float32."""

import copy
import itertools

import pytest
import torch
from tensors import assert_same
from tiers import nightly_for

from millrace.errors import NotFiniteError
from millrace.systems.groundwater import gno
from millrace.systems.groundwater.fourier import ChannelLast, FourierLayers
from millrace.systems.registry import models
from millrace.training import precision
from millrace.training.batches import rank_shares
from millrace.training.precision import LossScaler, autocast

EPOCHS = 8
# A rate that falls to zero: else the loss of the last epoch depends on where the last steps happened
# to lead, in any precision.
SMOOTH = {"learning_rate": 1e-3, "schedule": {"kind": "cosine", "horizon": float(EPOCHS)}}
CPU = torch.device("cpu")


@pytest.mark.parametrize("model", nightly_for(models(), lambda model: model in ("aurora", "smart")))
def test_final_loss_is_that_of_float32(make_trainer, run, model):
    check_final_losses(make_trainer, run, model, "relative_l2", ("bfloat16", "float16"))


@pytest.mark.parametrize("model", nightly_for(["gino", "aurora"], "aurora".__eq__))
def test_final_square_error_is_that_of_float32(make_trainer, run, model):
    check_final_losses(make_trainer, run, model, "mse", ("bfloat16",))


def check_final_losses(make_trainer, run, model, loss, kinds):
    losses = {}
    for name in ("float32", *kinds):
        trainer = make_trainer(model, precision=name, loss={"kind": loss}, **SMOOTH)
        run(trainer, EPOCHS)
        losses[name] = trainer.history[-1]
        assert {p.dtype for p in trainer.module.parameters()} == {torch.float32}
    for kind, key in itertools.product(kinds, ("train_loss", "validation_loss")):
        half, single = losses[kind][key], losses["float32"][key]
        # Steps are left out while the scale of float16 adapts, more of them in a deep model.
        loose = (model, kind) == ("downscaler", "float16")
        assert half == pytest.approx(single, rel=0.06 if loose else 0.01), (kind, key)
        assert half != single, "nothing was computed in half precision"


@pytest.mark.parametrize("model", models())
def test_gradients_are_those_of_float32_to_rounding(make_trainer, model):
    trainer = make_trainer(model)
    [share, *_] = rank_shares(next(trainer.batches(0)), 0, 1)
    samples = trainer.passes.samples("train", share, trainer.position.epoch)
    gradients = {}
    for name in ("float32", "bfloat16"):
        with autocast(name, CPU):
            loss_B = trainer.spec.loss(trainer.module, samples, trainer.config.loss)
        assert loss_B.dtype == torch.float32
        parameters = list(trainer.module.parameters())
        gradients[name] = torch.autograd.grad(loss_B.mean(), parameters)
    # Small gradients are differences of large terms: their rounding is that of the terms.
    least = 0.05 * float(sum(g.norm() ** 2 for g in gradients["float32"]) ** 0.5)
    for (parameter, _), single, half in zip(
        trainer.module.named_parameters(), *gradients.values(), strict=True
    ):
        assert half.dtype == single.dtype
        assert float((half - single).norm()) < 0.1 * max(float(single.norm()), least), parameter


@pytest.mark.parametrize("model", ["gino", "gfno"])
def test_spectral_layers_and_neighbour_sums_compute_in_float32(make_trainer, model, monkeypatch):
    trainer = make_trainer(model, precision="bfloat16")
    seen = {"spectral": set(), "sum": set(), "linear": set()}
    for layer in trainer.module.modules():
        if isinstance(layer, FourierLayers):
            for one in layer.convs:
                one.register_forward_hook(
                    lambda _, x, y: seen["spectral"].update((x[0].dtype, y.dtype))
                )
        if isinstance(layer, torch.nn.Linear | ChannelLast):
            layer.register_forward_hook(lambda _, x, y: seen["linear"].add(y.dtype))
    apply = gno._KernelSum.apply
    monkeypatch.setattr(
        gno._KernelSum,
        "apply",
        lambda kernel, f, table: (
            seen["sum"].update((kernel.dtype, f.dtype)) or apply(kernel, f, table)
        ),
    )
    trainer.passes.backward(next(trainer.batches(0)), trainer.position)
    assert seen["spectral"] == seen["sum"] == {torch.float32}
    assert torch.bfloat16 in seen["linear"]


def test_positions_are_embedded_in_their_own_precision(make_trainer):
    """They are kept for later batches: rounded ones would make a run depend on which came first."""
    embedded = []
    for kind in ("float32", "bfloat16"):
        trainer = make_trainer(precision=kind)
        trainer.passes.backward(next(trainer.batches(0)), trainer.position)
        embedded.append(next(iter(trainer.module.embedded.values())))
    for single, half in zip(*embedded, strict=True):
        assert torch.equal(single, half)


def test_overflow_leaves_a_step_out_and_halves_the_scale(make_trainer):
    trainer = make_trainer(precision="float16")
    trainer.scaler.scale = 2.0**100
    before = copy.deepcopy(trainer.module.state_dict())
    trainer.train_step(next(trainer.batches(0)))
    assert trainer.scaler.scale == 2.0**99
    assert_same(trainer.module.state_dict(), before)
    trainer.check_finite()
    trainer.scaler.scale = 2.0**10
    trainer.train_step(next(trainer.batches(0)))
    with pytest.raises(AssertionError):
        assert_same(trainer.module.state_dict(), before)


def test_what_is_not_finite_at_scale_one_stops_training(make_trainer, run):
    with pytest.raises(NotFiniteError):
        run(make_trainer(precision="float16", learning_rate=1e30, clip_norm=None), EPOCHS)


def test_the_scale_grows_and_survives_a_resume(make_trainer, run, resume, monkeypatch):
    monkeypatch.setattr(precision, "GROW_AFTER", 5)
    monkeypatch.setattr(precision, "FIRST_SCALE", 16.0)
    whole = make_trainer(precision="float16")
    run(whole, 1)
    assert whole.scaler.scale == 16.0 * 2 ** (whole.step // 5)
    again = resume(1, 7, precision="float16")
    run(again, 1)
    assert again.scaler.state() == whole.scaler.state()
    assert_same(again.module.state_dict(), whole.module.state_dict())


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_other_precisions_take_every_step_as_it_is(kind):
    scaler = LossScaler(kind)
    gradient = torch.tensor([3.0])
    scaler.unscale([gradient])
    assert scaler.accepts(torch.tensor(float("nan")))
    assert (scaler.scale, float(gradient), scaler.is_exhausted) == (1.0, 3.0, True)
