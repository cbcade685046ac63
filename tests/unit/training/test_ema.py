"""Averaged weights: the recursion, validation with them, and a bitwise resume."""

import contextlib

import pytest
import torch
from tensors import assert_same
from torch import nn

from millrace.errors import ConfigError
from millrace.training.config import TrainConfig
from millrace.training.ema import Ema
from millrace.training.store import weights_of

EMA = {"ema": 0.9}


def test_the_average_follows_its_recursion():
    module = nn.Linear(1, 1, bias=False).double()
    module.weight.data.fill_(5.0)
    expected, ema = 5.0, Ema(module, 0.7)
    for step in range(30):
        module.weight.data.fill_(float(step**2))
        ema.update(step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step**2
    with ema.applied():
        assert module.weight.item() == pytest.approx(expected, rel=1e-12)
    assert module.weight.item() == 29.0**2


def test_weights_return_even_after_an_error():
    module = nn.Linear(2, 2)
    ema, before = Ema(module, 0.5), module.weight.detach().clone()
    module.weight.data.add_(1.0)
    with contextlib.suppress(RuntimeError), ema.applied():
        assert torch.equal(module.weight, before)
        raise RuntimeError
    assert torch.equal(module.weight, before + 1.0)


def test_complex_weights_are_averaged():
    module = nn.Module()
    module.w = nn.Parameter(torch.tensor([1.0 + 2.0j]))
    ema = Ema(module, 0.5)
    module.w.data.fill_(3.0 - 4.0j)
    ema.update(10**6)
    with ema.applied():
        assert module.w.item() == pytest.approx(2.0 - 1.0j)


def test_validation_and_evaluation_use_the_average(make_trainer, run):
    trainer = make_trainer(**EMA)
    state = run(trainer, 2)
    assert weights_of(state) is state["ema_model"]
    plain = make_trainer()
    plain.module.load_state_dict(state["ema_model"])
    assert plain.validation_loss() == trainer.history[-1]["validation_loss"]
    plain.module.load_state_dict(state["model"])
    assert plain.validation_loss() != trainer.history[-1]["validation_loss"]


def test_training_itself_is_unchanged(make_trainer, run):
    with_average, without = run(make_trainer(**EMA), 1), run(make_trainer(), 1)
    assert_same(with_average["model"], without["model"])


@pytest.mark.parametrize("stop_after", [1, 9, 12, 20])
def test_resume_is_bitwise(make_trainer, run, resume, stop_after):
    whole = run(make_trainer(**EMA, keep_best=True), 2)
    final = run(resume(2, stop_after, **EMA, keep_best=True), 2)
    for kind in ("model", "ema_model", "best_model"):
        assert_same(final[kind], whole[kind])


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_a_decay_lies_between_0_and_1(decay):
    with pytest.raises(ConfigError, match=r"train\.ema"):
        TrainConfig.parse({"global_batch": 8, "ema": decay}, "train")
