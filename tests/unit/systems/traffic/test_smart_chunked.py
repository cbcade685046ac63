"""SMART on a CPU, in chunks and without padding, is the model as it is written down for all devices."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from millrace.systems.traffic.dataset import ScenarioDataset
from millrace.systems.traffic.settings import ScenarioConfig, SmartConfig
from millrace.systems.traffic.smart import chunked, kernels, tabulated
from millrace.systems.traffic.smart.layers import (
    FourierEmbedding,
    Neighbours,
    RelativeAttention,
    relative_positions,
)
from millrace.systems.traffic.smart.network import Cache
from millrace.systems.traffic.smart.rollout import RolloutConfig, rollout
from millrace.systems.traffic.smart.spec import SPEC

CONFIG = SmartConfig(hidden=16, heads=2, map_layers=1, layers=2, bands=8, past=3, map_neighbours=5)


@pytest.fixture(params=[7, 1024, "kernels"], autouse=True)
def pairs(request, monkeypatch):
    """Chunks of a few pairs, fewer than a query has neighbours, and of all; or kernels where they suit."""
    if request.param != "kernels":
        monkeypatch.setattr(chunked, "PAIRS", request.param)
        monkeypatch.setattr(kernels.KERNELS, "suit", lambda *_, **__: False)


@pytest.fixture
def as_written(monkeypatch):
    """Call a function without chunks."""

    def call(function):
        with monkeypatch.context() as changed:
            changed.setattr(chunked, "applies", lambda *_: False)
            return function()

    return call


@pytest.fixture
def dataset(motion_samples):
    return ScenarioDataset(motion_samples, ScenarioConfig(buckets=2))


@pytest.fixture
def model(dataset):
    torch.manual_seed(0)
    return SPEC.build(CONFIG, dataset)


def wide(batch):
    """The same batch in double precision."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return dataclasses.replace(
        batch, **{k: v.double() for k, v in fields.items() if v.dtype == torch.float32}
    )


def test_losses_and_gradients(dataset, model, as_written):
    model, batch = model.double(), wide(dataset.gather(dataset.scenarios("train")))
    assert not batch.valid_BAK.all()

    def found():
        loss_B = SPEC.loss(model, batch, None)
        return loss_B.detach(), torch.autograd.grad(loss_B.sum(), [*model.parameters()])

    (losses, gradients), (expected, exact) = found(), as_written(found)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
    for (name, _), one, two in zip(model.named_parameters(), gradients, exact, strict=True):
        assert (one - two).norm() <= 1e-11 * two.norm(), name


def test_attention_without_neighbours_and_with_many_queries_of_one_source(as_written):
    torch.manual_seed(1)
    layer = RelativeAttention(8, 2).double()
    x, sources, relation = (torch.randn(*shape).double() for shape in ((9, 8), (4, 16), (9, 5, 8)))
    index, mask = torch.randint(0, 4, (9, 5)), torch.rand(9, 5) < 0.7
    index[:4], mask[2] = 3, False
    given = [x, sources, relation, *layer.parameters()]
    for tensor in given[:3]:
        tensor.requires_grad_()

    def found():
        out = layer.attend(x, sources, Neighbours(index, mask, relation))
        return out, *torch.autograd.grad(out.square().sum(), given, materialize_grads=True)

    for one, two in zip(found(), as_written(found), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)
    assert torch.equal(
        layer.attend(x, sources, Neighbours(index, mask, relation))[2], torch.zeros(8)
    )


def test_relations_with_rows_of_a_table(as_written):
    torch.manual_seed(2)
    embedding = FourierEmbedding((1, 2), 8, 4).double()
    feature, mask = torch.randn(6, 5, 3).double(), torch.rand(6, 5) < 0.6
    mask[1] = False
    table, entry = torch.randn(3, 8).double().requires_grad_(), torch.randint(0, 3, (6, 5))
    factor = torch.randn(6, 5, 8) * mask[..., None]

    def found():
        out = embedding.pairs(feature, mask, (table, entry))
        given = [table, *embedding.parameters()]
        return out * mask[..., None], *torch.autograd.grad((out * factor).sum(), given)

    for one, two in zip(found(), as_written(found), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)


@torch.no_grad()
def test_attention_within_groups(as_written):
    """Three groups of four queries and five sources, of which three are neighbours."""
    torch.manual_seed(3)
    layer = RelativeAttention(8, 2).double()
    x, sources, relation = (
        torch.randn(*shape).double() for shape in ((12, 8), (15, 16), (12, 3, 8))
    )
    index = torch.stack([torch.randperm(5)[:3] for _ in range(12)])
    index += 5 * torch.arange(3).repeat_interleave(4)[:, None]
    mask = torch.rand(12, 3) < 0.7
    mask[5] = False
    near = Neighbours(index, mask, relation, chunked.parts(index, 3, 15, heads=2))
    found, expected = (
        layer.attend(x, sources, near),
        as_written(lambda: layer.attend(x, sources, near)),
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert not found[5].any()


@torch.no_grad()
def test_attention_of_queries_in_another_order(as_written):
    """Of the sources those that are neighbours in a part count; two groups of 40 queries."""
    torch.manual_seed(6)
    layer = RelativeAttention(8, 2).double()
    x, sources, relation = (
        torch.randn(*shape).double() for shape in ((80, 8), (22, 16), (80, 3, 8))
    )
    index = torch.stack([torch.randperm(11)[:3] for _ in range(80)])
    index += 11 * torch.arange(2).repeat_interleave(40)[:, None]
    mask = torch.rand(80, 3) < 0.7
    order = torch.cat([torch.randperm(40), 40 + torch.randperm(40)])
    parts = chunked.parts(index[order], 2, 22, 2, order)
    assert len(parts) == (6 if chunked.PAIRS == 7 else 1)
    near = Neighbours(index[order], mask[order], relation[order], parts)
    found = layer.attend(x, sources, near)
    near = Neighbours(index, mask, relation)
    expected = as_written(lambda: layer.attend(x, sources, near))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("grad", [False, True])
def test_attention_over_steps(as_written, grad):
    """Also with gradients, where tensors of steps are stacked."""
    torch.manual_seed(8)
    layer = RelativeAttention(8, 2).double()
    x, relation = torch.randn(40, 8).double(), torch.randn(40, 3, 8).double()
    steps, mask = [*torch.randn(3, 40, 16).double()], torch.rand(40, 3) < 0.7
    mask[5] = False
    near = Neighbours(torch.arange(120).view(40, 3), mask, relation)
    with torch.set_grad_enabled(grad):
        found = layer.attend(x, steps, near)
        stacked = torch.stack(steps, dim=1).flatten(0, 1)
        expected = as_written(lambda: layer.attend(x, stacked, near))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert found.requires_grad == grad
    assert not found[5].any()


def change_in_place(embedding):
    embedding.mlps[0][3].weight.mul_(1.1)


def change_without_a_version(embedding):
    weight = embedding.frequencies[0]
    weight.data.copy_(weight * 1.01)


def load_others(embedding):
    torch.manual_seed(10)
    embedding.load_state_dict(FourierEmbedding((1,), 32, 16).state_dict())


def replace_a_weight(embedding):
    embedding.out[0].bias = torch.nn.Parameter(torch.ones(32))


@torch.no_grad()
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "change", [change_in_place, change_without_a_version, load_others, replace_a_weight]
)
def test_tables_are_kept_as_long_as_weights_are_the_same(change, mode):
    torch.manual_seed(9)
    tabulated.KEPT.clear()
    feature, mask = torch.rand(200, 1, 1), torch.ones(200, 1, dtype=torch.bool)
    with mode():
        embedding = FourierEmbedding((1,), 32, 16)
        saved = {name: one.clone() for name, one in embedding.state_dict().items()}
        tables = embedding.tables((1.0,))
    assert embedding.tables((0.5,)) is not tables
    assert embedding.tables((1.0,)) is tables
    before = embedding.pairs(feature, mask, tables=tables)
    with mode():
        change(embedding)
    changed = embedding.tables((1.0,))
    assert changed is not tables
    after = embedding.pairs(feature, mask, tables=changed)
    torch.testing.assert_close(after, embedding.pairs(feature, mask), rtol=0, atol=2e-5)
    assert (after - before).abs().max() > 1e-3
    with mode():
        embedding.load_state_dict(saved)
    assert embedding.tables((1.0,)) is tables  # as averages of weights come and go
    assert embedding.tables((1.0,), torch.ones(2, 32)) is not tables
    assert len(tabulated.KEPT) == 3
    assert embedding.double().tables((1.0,)) is None


@torch.no_grad()
@pytest.mark.parametrize("masked", [0.01, 0.3])
def test_bearings_from_tables(masked):
    """From metres away to where they fade out; in closed form, in double precision."""
    torch.manual_seed(5)
    embedding = FourierEmbedding((1, 2, 2), 32, 16)
    query, source = torch.zeros(4000, 3), torch.randn(4000, 3) * torch.tensor([10, 10, 2])
    source[:300] /= 100
    feature, mask = relative_positions(query, source)[:, None], torch.rand(4000, 1) >= masked
    tables = embedding.tables((5.0, 2, 1))
    curve = tables.curves[1]
    within = (1 - feature[:, 0, 1:3].norm(dim=1)) / curve.step
    assert 0.05 < (within > 1).double().mean() < 0.3
    assert 0.5 < curve.smooth_T.double().mean() < 1
    found = embedding.pairs(feature, mask, tables=tables)
    by_formula = embedding.pairs(feature, mask)
    exact = embedding.double()(feature.double())
    exact = torch.nn.functional.layer_norm(exact, (32,))
    error, rounding = ((one - exact)[mask].square().mean().sqrt() for one in (found, by_formula))
    assert error <= 4 * rounding
    torch.testing.assert_close(found[mask], exact[mask].float(), rtol=0, atol=1e-5)
    assert found.isfinite().all()


@torch.no_grad()
def test_kinks_are_nodes():
    """Beside a kink a straight line through it would be off by far more than elsewhere."""
    torch.manual_seed(7)
    embedding = FourierEmbedding((1,), 32, 16)
    tables = embedding.tables((3.0,))
    curve = tables.curves[0]
    node = ((curve.kink_T > 0.2) & (curve.kink_T < 0.8)).nonzero()[:, 0]
    assert len(node) > 20
    share_3K = curve.kink_T[node] * torch.tensor([[0.5], [1], [1.1]])
    at = (node + share_3K) * curve.step
    feature, mask = at.float().reshape(-1, 1, 1), torch.ones(at.numel(), 1, dtype=torch.bool)
    found = embedding.pairs(feature, mask, tables=tables)
    exact = torch.nn.functional.layer_norm(embedding.double()(feature.double()), (32,))
    torch.testing.assert_close(found, exact.float(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_relations_from_tables():
    """Also beyond the end of a curve, where it is computed by the formula, and where angles begin anew."""
    torch.manual_seed(4)
    embedding = FourierEmbedding((1, 2, 2), 32, 16)
    distance, *angles = torch.rand(3, 3000, 1) * torch.tensor([4, 7, 7]).view(3, 1, 1)
    angles[1][:4, 0] = torch.tensor([0.0, -1e-7, math.pi, -math.pi])
    directions = [one(angle) for angle in angles for one in (torch.cos, torch.sin)]
    feature, mask = torch.cat([distance, *directions], dim=1)[:, None], torch.rand(3000, 1) < 0.9
    table, entry = torch.randn(3, 32), torch.randint(0, 3, (3000, 1))
    tables = embedding.tables((3.0, None, 1), table)
    assert [curve is not None for curve in tables.curves] == [True, False, True]
    assert all(0.9 < curve.smooth_T.double().mean() < 1 for curve in tables.curves if curve)
    found = embedding.pairs(feature, mask, (table, entry), tables)
    by_formula = embedding.pairs(feature, mask, (table, entry))
    exact = embedding.double().pairs(feature.double(), mask, (table.double(), entry))
    error, rounding = ((one - exact).square().mean().sqrt() for one in (found, by_formula))
    assert error <= 3 * rounding
    torch.testing.assert_close(found, exact.float(), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_masked_pairs_may_hold_anything(share):
    torch.manual_seed(11)
    embedding = FourierEmbedding((1, 2), 32, 16)
    distance, angle = 3 * torch.rand(2, 3000, 1)
    feature = torch.cat([distance, angle.cos(), angle.sin()], dim=1)[:, None]
    feature[0, 0, 0] = -0.01  # below the first node
    mask = (torch.rand(3000, 1) > share).index_fill_(0, torch.tensor([0]), True)
    feature[~mask] = torch.tensor([float("nan"), 1e30, -1.0])
    found = embedding.pairs(feature, mask, tables=embedding.tables((3.0, 1), torch.zeros(1, 32)))
    assert found.isfinite().all()
    exact = torch.nn.functional.layer_norm(embedding.double()(feature[mask].double()), (32,))
    torch.testing.assert_close(found[mask], exact.float(), rtol=0, atol=1e-4)


@torch.no_grad()
def test_probabilities_of_a_cached_rollout_are_those_of_the_formula(dataset, model, as_written):
    batch = dataset.gather(np.arange(3))
    steps = [t[:, :, :6] for t in (batch.token_BAK, batch.pose_BAK3, batch.valid_BAK)]
    encoded, cache = model.encode_map(batch, tabulate=True), Cache()
    assert encoded.road_tables is not None
    for known in zip(*(t.unbind(2) for t in steps), strict=True):
        logits = model.advance(encoded, cache, batch.kind_BA, batch.size_BA2, *known)
    given = (batch.kind_BA, batch.size_BA2, *steps)
    expected = as_written(lambda: model.decode(model.encode_map(batch), *given)[:, :, -1])
    there = batch.valid_BAK[:, :, 5]
    found, expected = (one[there].softmax(dim=-1) for one in (logits, expected))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rollouts_draw_the_same_tokens(dataset, model, as_written):
    batch, config = dataset.gather(np.arange(3)), RolloutConfig(samples=4, top_k=8)
    one = rollout(model, batch, config)
    two = as_written(lambda: rollout(model, batch, config))
    present = one.present_BA[:, None].expand(-1, 4, -1)
    assert torch.equal(one.token_BSAK[present], two.token_BSAK[present])
    assert one.token_BSAK[present].unique().numel() > 8


def test_a_batch_without_any_token(dataset, model):
    batch = dataset.batch("train", 0, np.arange(1))
    empty = dataclasses.replace(batch, valid_BAK=torch.zeros_like(batch.valid_BAK))
    loss_B = SPEC.loss(model, empty, None)
    loss_B.sum().backward()
    assert loss_B.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
