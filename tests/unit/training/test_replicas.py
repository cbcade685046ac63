"""Gradients exchanged in half precision, complex ones too."""

import pytest
import torch
from tiers import slow_for

from millrace.training.parallel.replicas import _compressed

STEPS = 24


@pytest.fixture(scope="module")
def train(experiments, train_on_ranks):
    """Kind of compression -> losses of two ranks."""
    definition, files = experiments["gino"]

    def run(kind):
        block = {**definition["train"], "gradient_compression": kind}
        return train_on_ranks(2, {**definition, "train": block}, files, STEPS)["losses"]

    return run


@pytest.fixture(scope="module")
def exact(train):
    return train("none")


@pytest.mark.slow
@pytest.mark.parametrize("kind", slow_for(["bfloat16", "float16"], "float16".__eq__))
def test_two_ranks_train_nearly_alike(train, exact, kind):
    compressed = train(kind)
    assert compressed[0] == exact[0]
    assert compressed[1:] != exact[1:], "nothing was compressed"
    assert compressed == pytest.approx(exact, rel=0.02)


class Bucket:
    def __init__(self, gradient):
        self._gradient = gradient

    def buffer(self):
        return self._gradient


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_real_and_imaginary_parts_are_averaged(monkeypatch, dtype):
    sent = []

    class Work:
        def get_future(self):
            future = torch.futures.Future()
            future.set_result([sent[0] * 2])  # the other rank has the same gradient
            return future

    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr(
        "torch.distributed.all_reduce", lambda tensor, async_op: sent.append(tensor) or Work()
    )
    gradient = torch.tensor([1.5 - 2.5j, 0.25 + 4.0j])
    expected = gradient.clone()
    assert torch.equal(_compressed(dtype, Bucket(gradient)).wait(), expected)
    assert sent[0].dtype == dtype


def test_a_single_rank_compresses_nothing(make_trainer):
    trainer = make_trainer(gradient_compression="bfloat16")
    assert trainer.passes.trained is trainer.module
