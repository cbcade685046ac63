import dataclasses

import numpy as np
import pytest
import torch

from millrace.errors import ConfigError
from millrace.systems.traffic.dataset import ScenarioConfig, ScenarioDataset
from millrace.systems.traffic.scenarios import SPLITS
from millrace.systems.traffic.smart import SPEC, Smart, SmartConfig
from millrace.systems.traffic.smart.layers import Neighbours, RelativeAttention, relations
from millrace.systems.traffic.smart.rollout import RolloutConfig, rollout, sample
from millrace.systems.traffic.tokens import HISTORY

CONFIG = SmartConfig(hidden=16, heads=2, map_layers=1, layers=2, bands=8, past=3)


@pytest.fixture
def dataset(motion_samples):
    return ScenarioDataset(motion_samples, ScenarioConfig(buckets=2))


@pytest.fixture
def model(dataset):
    torch.manual_seed(0)
    return SPEC.build(CONFIG, dataset).eval()


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
    found = layer._attend(n, layer.sources(x), Neighbours(index, mask, r))
    torch.testing.assert_close(found, expected)


def test_relations_do_not_jump():
    one = torch.tensor([[0.0, 0.0, 0.3]])
    before, after = (torch.tensor([[3.0, 4.0, 0.3 + turn]]) for turn in (3.1415, -3.1415))
    torch.testing.assert_close(relations(one, before), relations(one, after), atol=1e-3, rtol=0)
    assert relations(one, before)[0, 0] == pytest.approx(0.5, abs=1e-3)


def test_moving_and_turning_a_scene_changes_nothing(dataset, model):
    batch = dataset.batch("train", 0, np.arange(2))
    turn, shift = 0.7, torch.tensor([12.0, -5.0])

    def moved(pose):
        c, s = np.cos(turn), np.sin(turn)
        x, y = pose[..., 0], pose[..., 1]
        place = torch.stack([c * x - s * y, s * x + c * y], dim=-1) + shift
        return torch.cat([place, pose[..., 2:] + turn], dim=-1)

    other = dataclasses.replace(
        batch, pose_BAK3=moved(batch.pose_BAK3), road_pose_BM3=moved(batch.road_pose_BM3)
    )
    with torch.no_grad():
        one, two = model(batch)[0], model(other)[0]
    valid = batch.valid_BAK[:, :, :-1]
    torch.testing.assert_close(one[valid], two[valid], atol=1e-3, rtol=1e-3)


def test_a_batch_equals_its_scenes(dataset, model):
    scenes = dataset.scenes("train")[[0, 3, 5]]
    with torch.no_grad():
        together = model(dataset.gather(scenes))[0]
        for b, scene in enumerate(scenes):
            batch = dataset.gather(np.array([scene]))
            alone = model(batch)[0][0]
            valid = batch.valid_BAK[0, :, :-1]
            part = together[b, : len(alone)]
            assert (part[valid] - alone[valid]).abs().max() <= 1e-5


def test_what_padding_holds_changes_nothing(dataset, model):
    scenes = dataset.scenes("train")[[0, 5]]
    batch = dataset.gather(scenes, agents=9, pieces=120)
    random = torch.Generator().manual_seed(0)
    absent = ~batch.valid_BAK
    pose = torch.where(absent[..., None], torch.randn((*absent.shape, 3), generator=random), 0)
    noise = torch.randn(batch.road_pose_BM3.shape, generator=random)
    road = torch.where(batch.road_valid_BM[..., None], batch.road_pose_BM3, noise)
    dirty = dataclasses.replace(
        batch,
        pose_BAK3=torch.where(absent[..., None], pose, batch.pose_BAK3),
        token_BAK=torch.where(absent, 3, batch.token_BAK),
        road_pose_BM3=road,
    )
    assert absent.any()
    assert not batch.road_valid_BM.all()
    with torch.no_grad():
        losses = [SPEC.loss(model, one, None) for one in (batch, dirty)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)


def test_no_moment_sees_a_later_one(dataset, model):
    batch = dataset.batch("train", 0, np.arange(2))
    for moment in (1, 5, 12):
        token, pose, valid, light = (
            t.clone() for t in (batch.token_BAK, batch.pose_BAK3, batch.valid_BAK, batch.light_BMK)
        )
        token[:, :, moment:], pose[:, :, moment:] = 0, 7.0
        valid[:, :, moment:], light[:, :, moment:] = False, 2
        other = dataclasses.replace(
            batch, token_BAK=token, pose_BAK3=pose, valid_BAK=valid, light_BMK=light
        )
        with torch.no_grad():
            one, two = model(batch)[0], model(other)[0]
        assert torch.equal(one[:, :, :moment], two[:, :, :moment])
        assert not torch.equal(one, two)


def test_lights_of_the_future_are_not_known(dataset):
    batch = dataset.gather(dataset.scenes("train"))
    now = batch.light_BMK[:, :, HISTORY - 1 : HISTORY]
    assert (batch.light_BMK[:, :, HISTORY:] == now).all()
    assert (now > 0).any()


def test_hidden_pieces_are_not_seen_where_they_are_predicted(dataset, model):
    batch = dataset.batch("train", 0, np.arange(2))
    assert batch.road_hidden_BM.any()
    token = torch.where(batch.road_hidden_BM, 1 - batch.road_token_BM, batch.road_token_BM)
    with torch.no_grad():
        one, two = (
            model(dataclasses.replace(batch, road_token_BM=t)) for t in (batch.road_token_BM, token)
        )
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], two[0]), "the decoder sees all pieces"
    pose = batch.road_pose_BM3.clone()
    pose[..., 2] += 0.3 * batch.road_hidden_BM  # their directions would tell how the line goes on
    with torch.no_grad():
        three = model(dataclasses.replace(batch, road_pose_BM3=pose))
    shown = ~batch.road_hidden_BM & batch.road_valid_BM
    assert torch.equal(one[1][shown], three[1][shown])


def test_classes_keep_to_their_tokens(dataset, model):
    batch = dataset.gather(dataset.scenes("train"))
    with torch.no_grad():
        share = model(batch)[0].softmax(dim=-1)
    for kind, tokens in enumerate(dataset.vocabulary.motion):
        own = share[(batch.kind_BA == kind) & batch.valid_BAK.any(dim=2)]
        assert len(own)
        assert own[..., len(tokens) :].sum() == 0


@pytest.mark.parametrize("top_k", [1, 8])
def test_cached_rollout_equals_uncached(dataset, model, top_k):
    batch = dataset.gather(np.arange(4))
    lights = batch.light_BMK
    assert (lights[:, :, 0] != lights[:, :, 1]).any(), "a light changes before the present"
    config = RolloutConfig(samples=3, top_k=top_k)
    cached, whole = (rollout(model, batch, config, cached=c) for c in (True, False))
    present = cached.present_BA[:, None].expand(-1, 3, -1)
    assert torch.equal(cached.token_BSAK[present], whole.token_BSAK[present])
    assert (cached.pose_BSAT3[present] - whole.pose_BSAT3[present]).abs().max() <= 1e-4
    assert cached.pose_BSAT3.shape[3:] == (80, 3)


def test_rollouts_of_a_batch_are_those_of_its_scenes(dataset, model):
    scenes = dataset.scenes("test")
    config = RolloutConfig(samples=2)
    together = rollout(model, dataset.gather(scenes), config)
    for b, scene in enumerate(scenes):
        alone = rollout(model, dataset.gather(np.array([scene])), config)
        n = int(alone.present_BA.sum())
        assert torch.equal(together.token_BSAK[b, :, :n], alone.token_BSAK[0, :, :n])


def test_a_rollout_sees_nothing_after_the_present(dataset, model):
    batch = dataset.batch("test", 0, np.arange(1))
    blind = dataclasses.replace(
        batch,
        **{
            name: torch.cat(
                [values[:, :, :HISTORY], torch.zeros_like(values[:, :, HISTORY:])], dim=2
            )
            for name in ("token_BAK", "pose_BAK3", "valid_BAK")
            for values in (getattr(batch, name),)
        },
    )
    one, two = (rollout(model, b, RolloutConfig(samples=2)) for b in (batch, blind))
    assert torch.equal(one.token_BSAK, two.token_BSAK)


def test_sampling_follows_the_renormalised_probabilities():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(20_000, 4)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    drawn = sample(logits, uniform, RolloutConfig(top_k=2))
    share = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.625, 0.375, 0, 0]), atol=0.01, rtol=0)
    assert (sample(logits, uniform, RolloutConfig(top_k=1)) == 0).all()


def test_every_scene_is_in_one_bucket(dataset):
    for split in SPLITS:
        scenes = dataset.scenes(split)
        assert len(np.unique(scenes)) == len(scenes) == (dataset.split == SPLITS.index(split)).sum()
    small, large = (dataset.batch("train", g, np.arange(1)).kind_BA.shape[1] for g in (0, 1))
    assert small <= large


def test_a_large_file_is_read_scene_by_scene(motion_samples, dataset):
    other = ScenarioDataset(motion_samples, ScenarioConfig(buckets=2), cache_bytes=0)
    one, two = (v.batch("train", 1, np.arange(2)) for v in (dataset, other))
    for field in dataclasses.fields(one):
        assert torch.equal(getattr(one, field.name), getattr(two, field.name)), field.name


def test_heads_divide_the_width():
    with pytest.raises(ConfigError, match=r"multiple of model\.heads"):
        SmartConfig(hidden=30, heads=4)
