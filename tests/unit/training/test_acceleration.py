"""Checkpointed activations and compilation: other ways to the same numbers."""

import pytest
import torch
from tensors import assert_same

from millrace.systems.registry import get_model, models
from millrace.training import acceleration
from millrace.training.batches import rank_shares


def gradients(trainer):
    trainer.passes.backward(next(trainer.batches(0)), trainer.position)
    return {name: p.grad.clone() for name, p in trainer.module.named_parameters()}


@pytest.mark.parametrize("model", models())
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointed_activations_give_the_same_gradients(make_trainer, model, precision):
    assert get_model(model).recomputed
    kept = gradients(make_trainer(model, precision=precision))
    again = gradients(make_trainer(model, {"activation_checkpointing": True}, precision=precision))
    assert_same(kept, again)


@pytest.mark.parametrize("model", models())
def test_checkpointed_blocks_keep_less(make_trainer, model):
    def kept_bytes(execution):
        trainer = make_trainer(model, execution)
        first = next(trainer.batches(0))
        batch = trainer.passes.samples("train", rank_shares(first, 0, 1)[0], trainer.position.epoch)
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.spec.loss(trainer.module, batch, trainer.config.loss)
        return total

    assert kept_bytes({"activation_checkpointing": True}) < 0.8 * kept_bytes({})


def test_names_of_parameters_stay(make_trainer):
    state = make_trainer().state()
    trainer = make_trainer(execution={"activation_checkpointing": True, "compile": False})
    trainer.load(state)
    assert trainer.state()["model"].keys() == state["model"].keys()


def test_without_a_compiler_training_goes_on(make_trainer, run, monkeypatch):
    def no_compiler(*arguments, **options):
        raise RuntimeError("g++: not found\n(a long trace)")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.warns(
        UserWarning, match=r"train\.compile: no working compiler .*g\+\+: not found\)"
    ):
        trainer = make_trainer(execution={"compile": True})
    assert_same(run(trainer, 1)["model"], run(make_trainer(), 1)["model"])


def test_a_compiled_model_is_called(make_trainer, monkeypatch):
    calls = []

    def compiled(function, **options):
        return lambda *a, **k: calls.append(function) or function(*a, **k)

    monkeypatch.setattr(torch, "compile", compiled)
    trainer = make_trainer(execution={"compile": True})
    calls.clear()
    assert not any("_orig_mod" in name for name in trainer.state()["model"])
    gradients(trainer)
    assert len(calls) == 1
    assert acceleration.probe not in calls


@pytest.mark.slow
def test_a_compiler_gives_the_same_numbers():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    x = torch.randn(2, 3)
    expected = module(x)
    acceleration.compile_in_place(module, x.device)
    assert module._compiled_call_impl is not None
    torch.testing.assert_close(module(x), expected)
