"""Training of SMART on its own rollouts near the ground truth (CAT-K)."""

import copy

import numpy as np
import pytest
import torch
from observers import silent

from millrace.checking import contracts
from millrace.checking.case import Case
from millrace.errors import ConfigError
from millrace.systems.traffic.dataset import ScenarioDataset
from millrace.systems.traffic.settings import ScenarioConfig, SmartConfig
from millrace.systems.traffic.smart.rollout import _squared_distances, cat_k_rollout
from millrace.systems.traffic.smart.spec import SPEC
from millrace.systems.traffic.tokens import HISTORY
from millrace.systems.traffic.vocabulary import corners
from millrace.training.deadline import Deadline
from millrace.training.segment import build_trainer

CONFIG = SmartConfig(hidden=16, heads=2, map_layers=1, layers=1, bands=8, past=3)


@pytest.fixture
def batch(motion_samples):
    dataset = ScenarioDataset(motion_samples, ScenarioConfig(buckets=1))
    return dataset.batch("train", 0, np.arange(4))


@pytest.fixture
def model(motion_samples):
    torch.manual_seed(0)
    return SPEC.build(CONFIG, ScenarioDataset(motion_samples)).eval()


def going_on(batch):
    """Whether an agent has a token at each step after the current one and before it, [B, A, K - 2]."""
    return (batch.valid_BAK[:, :, 1:] & batch.valid_BAK[:, :, :-1])[:, :, HISTORY - 1 :]


def errors(batch, rolled):
    """Displacements (m) of agents that go on."""
    apart = (rolled.pose_BAK3 - batch.pose_BAK3)[..., :2].norm(dim=-1)[:, :, HISTORY:]
    return apart[going_on(batch)]


def test_distances_are_those_of_corners(model):
    """The mean square, corner by corner, of boxes of the size of each class."""
    random = torch.Generator().manual_seed(3)
    pose, true = (3 * torch.randn((1, 3, 3), generator=random) for _ in range(2))
    kind = torch.arange(3)[None]
    found = _squared_distances(model, kind, pose, true)[0]
    for c, count in enumerate(model.exists_CV.sum(dim=1).tolist()):
        token = torch.arange(count)
        begin = pose[:, c].expand(count, 3)
        poses = model.token_poses(begin[None], torch.full((1, count), c), token[None])
        end, goal = (corners(p.double().numpy(), c) for p in (poses[0, :, -1], true[:, c]))
        expected = ((end - goal) ** 2).sum(axis=-1).mean(axis=-1)
        np.testing.assert_allclose(found[c, :count], expected, rtol=1e-4)
        assert torch.isinf(found[c, count:]).all()


def test_among_all_tokens_the_rollout_is_the_ground_truth(batch, model):
    rolled, target = cat_k_rollout(model, batch, top_k=10_000)
    seen = going_on(batch)
    assert seen.sum() > 100
    assert torch.equal(rolled.token_BAK[:, :, HISTORY:][seen], target[:, :, HISTORY:][seen])
    # The tokeniser minimises the mean distance of corners, not its root mean square.
    same = (target == batch.token_BAK)[:, :, HISTORY:][seen]
    assert same.float().mean() > 0.9
    assert errors(batch, rolled).max() < 0.2, "the tolerance of the vocabulary"


def test_with_one_token_the_model_drives_itself(batch, model):
    rolled, target = cat_k_rollout(model, batch, top_k=1)
    with torch.no_grad():
        logits = model(rolled)[0]
    best = logits.argmax(dim=-1)[:, :, HISTORY - 1 :]
    seen = going_on(batch)
    assert torch.equal(rolled.token_BAK[:, :, HISTORY:][seen], best[seen])
    wide, narrow = (errors(batch, cat_k_rollout(model, batch, k)[0]).mean() for k in (1, 16))
    assert narrow < 0.5 * wide
    # From the states of the rollout, the target leads nearer to the ground truth than the token taken.
    kind = batch.kind_BA[:, :, None].expand_as(best)[seen][None]
    begin, true = (
        rolled.pose_BAK3[:, :, HISTORY - 1 : -1][seen],
        batch.pose_BAK3[:, :, HISTORY:][seen],
    )
    ends = [
        model.token_poses(begin[None], kind, token[:, :, HISTORY:][seen][None])[0, :, -1]
        for token in (target, rolled.token_BAK)
    ]
    nearer, taken = ((end - true)[:, :2].norm(dim=-1).mean() for end in ends)
    assert nearer < taken


def test_the_history_and_agents_that_come_back_are_those_of_the_ground_truth(batch, model):
    rolled, _ = cat_k_rollout(model, batch, top_k=1)
    assert torch.equal(rolled.pose_BAK3[:, :, :HISTORY], batch.pose_BAK3[:, :, :HISTORY])
    valid = batch.valid_BAK
    back = valid[:, :, HISTORY:] & ~valid[:, :, HISTORY - 1 : -1]
    assert back.any()
    poses = [b.pose_BAK3[:, :, HISTORY:][back] for b in (rolled, batch)]
    assert torch.equal(*poses)


@pytest.fixture
def second_stage(experiments, alone, tmp_path):
    """A trainer of the second stage, and the weights of the first one."""
    definition, files = copy.deepcopy(experiments["smart"])
    definition["train"]["learning_rate"] = 1e-2
    first = build_trainer(definition, files, 0, alone)[0]
    first.run(4, Deadline(), silent())
    path = tmp_path / "first.ckpt"
    torch.save(first.state(), path)
    definition["model"]["closed_loop"] = 8
    definition["train"] |= {"learning_rate": 3e-3, "init_from": {"checkpoint": str(path)}}
    return Case(definition, files, tmp_path)


@pytest.mark.slow
def test_fine_tuning_lowers_the_error_of_driving_alone(second_stage, batch):
    trainer = second_stage.trainer()
    before = errors(batch, cat_k_rollout(trainer.module, batch, 1)[0]).mean()
    trainer.run(6, Deadline(), silent())
    after = errors(batch, cat_k_rollout(trainer.module, batch, 1)[0]).mean()
    assert after < 0.9 * before


@pytest.mark.slow
def test_the_second_stage_resumes_bitwise(second_stage):
    contracts.resumes_bitwise(second_stage)


def test_another_vocabulary_is_refused(second_stage):
    path = second_stage.definition["train"]["init_from"]["checkpoint"]
    state = torch.load(path, weights_only=True)
    state["model"]["motion_CVP3"][0, 0] += 0.1
    torch.save(state, path)
    with pytest.raises(ConfigError, match=r"first\.ckpt: .* another vocabulary of motion"):
        second_stage.trainer()


def test_closed_loop_is_checked():
    with pytest.raises(ConfigError, match=r"model\.closed_loop: expected a whole number from 0"):
        SmartConfig.parse({"closed_loop": -1}, "model")
