"""The model SMART, its rollouts, and the batches that it takes."""

import dataclasses

import numpy as np
import pytest
import torch

from millrace.data.split import SPLITS
from millrace.errors import ConfigError
from millrace.systems.traffic.dataset import ScenarioDataset
from millrace.systems.traffic.settings import ScenarioConfig, SmartConfig
from millrace.systems.traffic.smart.layers import Neighbours, RelativeAttention, relative_positions
from millrace.systems.traffic.smart.network import Smart
from millrace.systems.traffic.smart.rollout import RolloutConfig, rollout, sample
from millrace.systems.traffic.smart.spec import SPEC
from millrace.systems.traffic.tokens import HISTORY

CONFIG = SmartConfig(hidden=16, heads=2, map_layers=1, layers=2, bands=8, past=3)


@pytest.fixture
def dataset(motion_samples):
    return ScenarioDataset(motion_samples, ScenarioConfig(buckets=2))


@pytest.fixture
def model(dataset):
    torch.manual_seed(0)
    return SPEC.build(CONFIG, dataset).eval()


@torch.no_grad()
def logits(model, batch, **changes):
    """Logits of motion tokens and of road tokens, with other fields of the batch."""
    return model(dataclasses.replace(batch, **changes))


@pytest.mark.parametrize(("hidden", "millions"), [(64, 2.0), (128, 7.15), (256, 26.9), (512, 104)])
def test_size(hidden, millions):
    tokens, count = torch.zeros(3, 2048, 6, 3), torch.full((3,), 2048)
    model = Smart(SmartConfig(hidden=hidden), tokens, count, torch.zeros(1024, 3, 2))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.02)


def test_attention_is_that_of_the_formula():
    """Keys and values with relations written out, as in the docstring."""
    torch.manual_seed(1)
    layer = RelativeAttention(8, 2).double()
    x, r = torch.randn(5, 8).double(), torch.randn(5, 3, 8).double()
    index = torch.tensor([[1, 2, 3], [0, 2, 4], [4, 1, 0], [0, 1, 2], [3, 2, 1]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]]).bool()
    n = layer.norm_query(x)
    key = layer.key(n)[index] + layer.relation_key(r)
    value = layer.value(n)[index] + layer.relation_value(r)
    score = (layer.query(n).view(5, 1, 2, 4) * key.view(5, 3, 2, 4)).sum(-1) / 2
    score = score.masked_fill(~mask[..., None], -torch.inf).softmax(dim=1).nan_to_num()
    expected = (score[..., None] * value.view(5, 3, 2, 4)).sum(1).flatten(1)
    found = layer.attend(n, layer.sources(x), Neighbours(index, mask, r))
    torch.testing.assert_close(found, expected)


def test_relative_positions_are_continuous():
    query = torch.tensor([[0.0, 0.0, 0.3]])
    sources = (torch.tensor([[3.0, 4.0, 0.3 + turn]]) for turn in (3.1415, -3.1415))
    before, after = (relative_positions(query, source) for source in sources)
    torch.testing.assert_close(before, after, atol=1e-3, rtol=0)
    assert before[0, 0] == pytest.approx(0.5, abs=1e-3)


def test_moving_and_turning_a_scenario_changes_nothing(dataset, model):
    batch = dataset.batch("train", 0, np.arange(2))
    turn, shift = 0.7, torch.tensor([12.0, -5.0])

    def moved(pose):
        c, s = np.cos(turn), np.sin(turn)
        x, y = pose[..., 0], pose[..., 1]
        place = torch.stack([c * x - s * y, s * x + c * y], dim=-1) + shift
        return torch.cat([place, pose[..., 2:] + turn], dim=-1)

    other = {name: moved(getattr(batch, name)) for name in ("pose_BAK3", "road_pose_BM3")}
    one, two = logits(model, batch)[0], logits(model, batch, **other)[0]
    valid = batch.valid_BAK[:, :, :-1]
    torch.testing.assert_close(one[valid], two[valid], atol=1e-3, rtol=1e-3)


def test_a_batch_equals_its_scenarios(dataset, model):
    scenarios = dataset.scenarios("train")[[0, 3, 5]]
    together = logits(model, dataset.gather(scenarios))[0]
    for b, scenario in enumerate(scenarios):
        batch = dataset.gather([scenario])
        alone = logits(model, batch)[0][0]
        valid = batch.valid_BAK[0, :, :-1]
        part = together[b, : len(alone)]
        assert (part[valid] - alone[valid]).abs().max() <= 1e-5


def test_padding_changes_nothing(dataset, model):
    scenarios = dataset.scenarios("train")[[0, 5]]
    batch = dataset.gather(scenarios, agents=9, segments=120)
    random = torch.Generator().manual_seed(0)
    agents, road = batch.valid_BAK, batch.road_valid_BM
    assert not agents.all()
    assert not road.all()
    pose, road_pose = batch.pose_BAK3, batch.road_pose_BM3
    noise = [torch.randn(t.shape, generator=random) for t in (pose, road_pose)]
    dirty = dataclasses.replace(
        batch,
        pose_BAK3=torch.where(agents[..., None], pose, noise[0]),
        token_BAK=torch.where(agents, batch.token_BAK, 3),
        road_pose_BM3=torch.where(road[..., None], road_pose, noise[1]),
    )
    with torch.no_grad():
        losses = [SPEC.loss(model, one, None) for one in (batch, dirty)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)


def later(batch, step, **values):
    """Fields of a batch with other values from a token step on."""
    fields = {name: getattr(batch, name).clone() for name in values}
    for name, value in values.items():
        fields[name][:, :, step:] = value
    return fields


def test_no_token_step_attends_to_a_later_one(dataset, model):
    batch = dataset.batch("train", 0, np.arange(2))
    one = logits(model, batch)[0]
    for step in (1, 5, 12):
        other = later(batch, step, token_BAK=0, pose_BAK3=7.0, valid_BAK=False, light_BMK=2)
        two = logits(model, batch, **other)[0]
        # To rounding: rows without a token are left out, and others move up in the products.
        torch.testing.assert_close(one[:, :, :step], two[:, :, :step], atol=1e-6, rtol=0)
        assert (one - two).abs().max() > 1e-3


def test_lights_after_the_current_step_are_not_known(dataset):
    batch = dataset.gather(dataset.scenarios("train"))
    now = batch.light_BMK[:, :, HISTORY - 1 : HISTORY]
    assert (batch.light_BMK[:, :, HISTORY:] == now).all()
    assert (now > 0).any()


def test_masked_road_tokens_do_not_take_part_in_their_prediction(dataset, model):
    batch = dataset.batch("train", 0, np.arange(2))
    masked = batch.road_masked_BM
    assert masked.any()
    token = torch.where(masked, 1 - batch.road_token_BM, batch.road_token_BM)
    one, two = logits(model, batch), logits(model, batch, road_token_BM=token)
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], two[0]), "the decoder attends to all road tokens"
    pose = batch.road_pose_BM3.clone()
    pose[..., 2] += 0.3 * masked  # their directions would show how the polyline goes on
    three = logits(model, batch, road_pose_BM3=pose)
    shown = ~masked & batch.road_valid_BM
    assert torch.equal(one[1][shown], three[1][shown])


def test_classes_have_tokens_of_their_own(dataset, model):
    batch = dataset.gather(dataset.scenarios("train"))
    share = logits(model, batch)[0].softmax(dim=-1)
    for kind, tokens in enumerate(dataset.vocabulary.motion):
        own = share[(batch.kind_BA == kind) & batch.valid_BAK.any(dim=2)]
        assert len(own)
        assert own[..., len(tokens) :].sum() == 0


@pytest.mark.parametrize("top_k", [1, 8])
def test_cached_rollout_equals_uncached(dataset, model, top_k):
    batch = dataset.gather(np.arange(4))
    lights = batch.light_BMK
    assert (lights[:, :, 0] != lights[:, :, 1]).any(), "a light changes before the current step"
    config = RolloutConfig(samples=3, top_k=top_k)
    cached, whole = (rollout(model, batch, config, cached=c) for c in (True, False))
    present = cached.present_BA[:, None].expand(-1, 3, -1)
    assert torch.equal(cached.token_BSAK[present], whole.token_BSAK[present])
    assert (cached.pose_BSAT3[present] - whole.pose_BSAT3[present]).abs().max() <= 1e-4
    assert cached.pose_BSAT3.shape[3:] == (80, 3)


def test_rollouts_of_a_batch_are_those_of_its_scenarios(dataset, model):
    scenarios = dataset.scenarios("test")
    config = RolloutConfig(samples=2)
    together = rollout(model, dataset.gather(scenarios), config)
    for b, scenario in enumerate(scenarios):
        alone = rollout(model, dataset.gather([scenario]), config)
        n = int(alone.present_BA.sum())
        assert torch.equal(together.token_BSAK[b, :, :n], alone.token_BSAK[0, :, :n])


def test_a_rollout_does_not_depend_on_later_steps(dataset, model):
    batch = dataset.batch("test", 0, np.arange(1))
    other = later(batch, HISTORY, token_BAK=0, pose_BAK3=0.0, valid_BAK=False)
    blind = dataclasses.replace(batch, **other)
    one, two = (rollout(model, b, RolloutConfig(samples=2)) for b in (batch, blind))
    assert torch.equal(one.token_BSAK, two.token_BSAK)


def test_sampling_follows_the_renormalised_probabilities():
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(20_000, 4)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    drawn = sample(scores, uniform, RolloutConfig(top_k=2))
    share = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.625, 0.375, 0, 0]), atol=0.01, rtol=0)
    assert (sample(scores, uniform, RolloutConfig(top_k=1)) == 0).all()


def test_every_scenario_is_in_one_bucket(dataset):
    for split in SPLITS:
        expected = np.flatnonzero(dataset.split == SPLITS.index(split))
        assert sorted(dataset.scenarios(split)) == expected.tolist()
    small, large = (dataset.batch("train", g, np.arange(1)).kind_BA.shape[1] for g in (0, 1))
    assert small <= large


def test_a_large_file_is_read_scenario_by_scenario(motion_samples, dataset):
    other = ScenarioDataset(motion_samples, ScenarioConfig(buckets=2), cache_bytes=0)
    one, two = (v.batch("train", 1, np.arange(2)) for v in (dataset, other))
    for field in dataclasses.fields(one):
        assert torch.equal(getattr(one, field.name), getattr(two, field.name)), field.name


def test_heads_divide_the_width():
    with pytest.raises(ConfigError, match=r"multiple of heads"):
        SmartConfig.parse({"hidden": 30, "heads": 4}, "model")
