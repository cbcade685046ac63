"""Kernels of SMART in C are its formula, in double precision, with gradients."""

import dataclasses

import numpy as np
import pytest
import torch

from millrace.systems.traffic.dataset import ScenarioDataset
from millrace.systems.traffic.settings import ScenarioConfig, SmartConfig
from millrace.systems.traffic.smart import chunked, kernels
from millrace.systems.traffic.smart.layers import (
    FourierEmbedding,
    Neighbours,
    RelativeAttention,
)
from millrace.systems.traffic.smart.rollout import RolloutConfig, rollout
from millrace.systems.traffic.smart.spec import SPEC

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.fixture(params=["native", "haswell"])
def instructions(request, compile_for):
    """Vectors as wide as the processor has them, and those of 8 numbers."""
    compile_for(request.param)


def case(heads, width, queries=37, neighbours=5, sources=9):
    """Tensors of `chunked.attention`; the third query has no neighbours, the last source no query."""
    torch.manual_seed(heads * width)
    channels = heads * width
    query, matrices = torch.randn(queries, heads, width), torch.randn(2, heads, width, channels)
    given = [query, torch.randn(sources, 2 * channels), *matrices / channels**0.5]
    index = torch.randint(0, sources - 1, (queries, neighbours))
    mask = torch.rand(queries, neighbours) < 0.7
    mask[2] = False
    return given, index, mask, torch.randn(queries, neighbours, channels)


def found(given, index, mask, relation):
    given = [one.clone().requires_grad_() for one in (*given, relation)]
    out = chunked.attention(*given[:4], index, mask, given[4])
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), given)]


@pytest.mark.parametrize(
    ("heads", "width", "neighbours"), [(4, 8, 5), (8, 16, 64), (8, 8, 9), (4, 32, 1), (8, 32, 3)]
)
def test_attention_is_the_formula_in_double_precision(instructions, heads, width, neighbours):
    given, index, mask, relation = case(heads, width, neighbours=neighbours)
    assert kernels.attend(*given, relation, heads=heads, width=width)
    wide = found([one.double() for one in given], index, mask, relation.double())
    for ours, exact in zip(found(given, index, mask, relation), wide, strict=True):
        assert (ours - exact).norm() <= 2e-6 * exact.norm()
    assert not ours[~mask].any()


def test_any_number_of_threads_has_the_same_result(embedding):
    given, index, mask, relation = case(8, 16, queries=500, sources=50)
    embedding, *about, table, entry = embedding
    before = torch.get_num_threads()
    made = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        embedded = embedding.pairs(*about, (table, entry)).detach()
        made.append([embedded, *found(given, index, mask, relation)])
    torch.set_num_threads(before)
    assert all(map(torch.equal, *made))


@torch.no_grad()
def test_what_is_no_number_stays_none():
    given, index, mask, relation = case(8, 16)
    relation[5, 0, 3] = given[0][7, 1, 1] = given[1][4, 2 * 16] = float("nan")  # key of head 2
    mask[5, 0] = mask[7, 0] = True
    relation[~mask] = float("inf")  # which is passed over
    out = chunked.attention(*given, index, mask, relation)
    torn = ((index == 4) & mask).any(dim=1)
    assert 0 < torn.sum() < len(torn)
    assert out[5].isnan().all()
    assert out[7, 1].isnan().all()
    assert out[torn, 2].isnan().all()
    out[[5, 7]] = out[torn, 2] = 0
    assert out.isfinite().all()


@torch.no_grad()
def test_rows_of_steps_are_not_stacked(instructions):
    torch.manual_seed(4)
    layer = RelativeAttention(32, 4)
    x, relation, steps = torch.randn(40, 32), torch.randn(40, 3, 32), [*torch.randn(3, 40, 64)]
    mask = torch.rand(40, 3) < 0.7
    index = torch.arange(40)[:, None] + 40 * torch.arange(3)
    near = Neighbours(index, mask, relation)
    expected = layer.attend(x, torch.cat(steps), near)
    assert torch.equal(layer.attend(x, steps, near), expected)


@pytest.mark.parametrize(("heads", "width"), [(8, 4), (2, 16), (4, 12)])
def test_other_heads_are_left_to_pytorch(heads, width):
    given, index, mask, relation = case(heads, width)
    assert not kernels.attend(*given, relation, heads=heads, width=width)
    wide = found([one.double() for one in given], index, mask, relation.double())
    for ours, exact in zip(found(given, index, mask, relation), wide, strict=True):
        assert (ours - exact).norm() <= 2e-6 * exact.norm()


@pytest.fixture
def embedding():
    """With other numbers of bands than vectors have, and a case: features, mask, table and its rows."""
    torch.manual_seed(6)
    embedding = FourierEmbedding((1, 2), 32, 11)
    distance, angle = torch.rand(2, 150, 3) * torch.tensor([3.0, 7.0])[:, None, None]
    feature = torch.stack([distance, angle.cos(), angle.sin()], dim=-1)
    mask, entry = torch.rand(150, 3) < 0.8, torch.randint(0, 4, (150, 3))
    return embedding, feature, mask, torch.randn(4, 32), entry


def test_embedded_relations_are_the_formula_in_double_precision(instructions, embedding):
    embedding, feature, mask, table, entry = embedding
    assert kernels.KERNELS.suit(feature, table, *embedding.parameters(), channels=32)
    factor = torch.randn(*mask.shape, 32) * mask[..., None]

    def found(dtype):
        extra = table.to(dtype).requires_grad_(), entry
        given = [extra[0], *embedding.to(dtype).parameters()]
        out = embedding.pairs(feature.to(dtype), mask, extra) * mask[..., None]
        return out.detach(), *torch.autograd.grad((out * factor).sum(), given)

    for ours, exact in zip(found(torch.float32), found(torch.float64), strict=True):
        assert (ours - exact).norm() <= 5e-6 * exact.norm()


@torch.no_grad()
@pytest.mark.parametrize("extents", [(3.0, 1), (1.5, None)])
def test_relations_from_tables(instructions, embedding, extents):
    embedding, feature, mask, table, entry = embedding
    tables = embedding.tables(extents, table)
    found = embedding.pairs(feature, mask, (table, entry), tables)
    feature[5, 1, 0] = float("nan")
    mask[5, 1] = True
    torn = embedding.pairs(feature, mask, (table, entry), tables)
    assert torn[5, 1].isnan().all()
    mask[5, 1] = False
    assert torch.equal(torn[mask], found[mask])
    exact = embedding.double().pairs(feature.double(), mask, (table.double(), entry))
    torch.testing.assert_close(found[mask], exact[mask].float(), rtol=0, atol=1e-5)


@pytest.fixture
def dataset(motion_samples):
    return ScenarioDataset(motion_samples, ScenarioConfig(buckets=2))


@pytest.fixture
def model(dataset):
    torch.manual_seed(0)
    few = {"map_layers": 1, "layers": 2, "bands": 8, "past": 3, "map_neighbours": 5}
    return SPEC.build(SmartConfig(hidden=32, heads=4, **few), dataset)


def test_losses_and_gradients_of_the_model(dataset, model, monkeypatch):
    batch = dataset.gather(dataset.scenarios("train"))
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    singles = {k: v.double() for k, v in fields.items() if v.dtype == torch.float32}

    def both(batch):
        loss_B = SPEC.loss(model, batch, None)
        return loss_B.detach(), *torch.autograd.grad(loss_B.sum(), [*model.parameters()])

    ours = both(batch)
    model.double()
    monkeypatch.setattr(chunked, "applies", lambda *_: False)
    for one, exact in zip(ours, both(dataclasses.replace(batch, **singles)), strict=True):
        assert (one - exact).norm() <= 1e-4 * exact.norm() + 1e-9  # of waves


def test_rollouts_draw_the_tokens_of_the_formula(dataset, model, monkeypatch):
    batch, config = dataset.gather(np.arange(2)), RolloutConfig(samples=3, top_k=8)
    ours = rollout(model, batch, config)
    monkeypatch.setattr(chunked, "applies", lambda *_: False)
    exact = rollout(model, batch, config)
    present = exact.present_BA[:, None].expand(-1, 3, -1)
    assert torch.equal(ours.token_BSAK[present], exact.token_BSAK[present])
