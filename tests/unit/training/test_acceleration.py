"""Checkpointed activations and compilation: other ways to the same numbers."""

import copy
import functools

import numpy as np
import pytest
import torch
from tensors import assert_same
from tiers import nightly_for

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


def test_graphs_add_to_gradients_that_they_have_not_made(make_trainer, run, monkeypatch):
    """What a CUDA graph has made is overwritten by its next run, that of the next micro-batch."""
    events, modes = [], []

    def compiled(function, mode=None):
        modes.append(mode)
        return lambda *a, **k: events.append("pass") or function(*a, **k)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: events.append("begin"))
    execution = {"compile": "reduce-overhead", "micro_batch": 2}
    trainer = make_trainer(execution=execution)
    assert modes == [None, "reduce-overhead"]
    places = [p.grad.data_ptr() for p in trainer.module.parameters()]
    events.clear()
    state = run(trainer, 1)
    assert [p.grad.data_ptr() for p in trainer.module.parameters()] == places
    assert events
    assert events == ["begin", "pass"] * (len(events) // 2)
    assert_same(state["model"], run(make_trainer(execution={"micro_batch": 2}), 1)["model"])


@pytest.mark.parametrize("model", ["gino", "gfno"])
def test_a_copy_of_a_compiled_model_has_its_own_weights(make_trainer, model):
    trainer = make_trainer(model)
    trainer.module.compile(backend="eager")
    batch = trainer.dataset.batch("train", 0, np.arange(1))
    again = copy.deepcopy(trainer.module)
    for parameter in again.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        assert torch.equal(again(batch), batch.last_KBV.unsqueeze(2).expand_as(again(batch)))
        assert not torch.equal(trainer.module(batch), again(batch))


@pytest.mark.slow
def test_a_compiler_gives_the_same_numbers():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    x = torch.randn(2, 3)
    expected = module(x)
    acceleration.compile_in_place(module, x.device)
    assert module._compiled_call_impl is not None
    torch.testing.assert_close(module(x), expected)


def on_meta(value):
    """A sample with its geometry on a device other than the CPU, where it has sizes alone."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {key: on_meta(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(map(on_meta, value))
    if not hasattr(value, "__dict__") or isinstance(value, type):
        return value
    made = copy.copy(value)
    made.__dict__.update(on_meta(vars(value)))
    return made


@pytest.fixture
def autocast_on_meta(monkeypatch):
    """There it is refused; what is cast is that of a CPU."""
    made = torch.autocast.__init__

    @functools.wraps(made)
    def make(self, device_type, *arguments, **options):
        made(self, "cpu" if device_type == "meta" else device_type, *arguments, **options)

    monkeypatch.setattr(torch.autocast, "__init__", make)


def losses(trainer, move):
    """Of two batches, whose sizes differ."""
    found = []
    for batch in (trainer.dataset.batch("train", 0, np.arange(size)) for size in (2, 3)):
        if trainer.spec.add_noise is not None:
            seeds = np.arange(len(batch.weight_B))
            batch = trainer.spec.add_noise(trainer.passes.model_config, batch, seeds)
        found.append(trainer.spec.loss(trainer.module, move(batch), trainer.config.loss))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", nightly_for(models(), "smart".__eq__))  # forty seconds
def test_a_compiled_model_is_one_graph_that_stays_on_its_device(
    make_trainer, autocast_on_meta, model
):
    """Else launches of the parts cost what compiling saves, and CUDA graphs are left out."""
    graphs = []

    def compiler(graph, _):
        graphs.append(graph)
        return graph

    trainer = make_trainer(model)
    expected = losses(trainer, lambda batch: batch)
    torch._dynamo.reset()
    trainer.module.compile(backend=compiler, fullgraph=True)
    for one, other in zip(losses(trainer, lambda batch: batch), expected, strict=True):
        torch.testing.assert_close(one, other)
        one.sum().backward()
    assert 1 <= len(graphs) <= 2
    graphs.clear()
    trainer.module.to("meta")
    losses(trainer, on_meta)
    values = [node.meta.get("example_value") for graph in graphs for node in graph.graph.nodes]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert not any(tensor.is_complex() for tensor in tensors)
