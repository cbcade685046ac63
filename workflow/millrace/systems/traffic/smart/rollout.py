"""Rollouts of SMART: road users drive on together, each sampling its next token in every half second.

The road is encoded once for all rollouts of a scene; keys and values of moments that are over are kept.
What is sampled is decided by uniform numbers that belong to a scene, a rollout and a road user, so that
other scenes in the batch, or their number, change nothing.

Shape suffixes: B scenes, S rollouts of each, A road users, K tokens, T steps of 0.1 s.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from millrace.errors import ConfigError
from millrace.systems.traffic.dataset import ScenarioBatch
from millrace.systems.traffic.smart.network import Cache, Smart
from millrace.systems.traffic.tokens import HISTORY, STRIDE, TOKENS


@dataclass(frozen=True)
class RolloutConfig:
    """How rollouts are drawn."""

    samples: int = 32
    """Rollouts of each scene."""
    steps: int = TOKENS - HISTORY
    """Tokens ahead."""
    top_k: int = 32
    """Tokens among which one is drawn, with their probabilities renormalised; 1 takes the best."""
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.samples, self.steps, self.top_k) < 1 or not self.temperature > 0:
            raise ConfigError("rollout: expected samples, steps, top_k and a temperature above 0")


@dataclass(frozen=True, eq=False)
class Rollouts:
    """What may happen next, in the frames of the scenes."""

    token_BSAK: Tensor
    pose_BSAT3: Tensor
    """Every 0.1 s, the first 0.1 s after the present."""
    present_BA: Tensor
    """bool: road users, and not padding."""


@torch.no_grad()
def rollout(
    module: Smart, batch: ScenarioBatch, config: RolloutConfig, cached: bool = True
) -> Rollouts:
    """Draw rollouts from the present on; what the batch holds of later moments is not looked at.

    Parameters
    ----------
    module : Smart
    batch : ScenarioBatch
    config : RolloutConfig
    cached : bool
        False: everything is computed again for each token. The results are the same.
    """
    n = config.samples
    present = batch.valid_BAK[:, :, HISTORY - 1]
    kind, size = (_repeat(t, n) for t in (batch.kind_BA, batch.size_BA2))
    token, pose, valid = (
        [*_repeat(t[:, :, :HISTORY], n).unbind(2)]
        for t in (batch.token_BAK, batch.pose_BAK3, batch.valid_BAK)
    )
    uniform = _uniform(batch, config).to(pose[0])
    road, cache = module.encode_road(batch), Cache()
    if cached:
        for k in range(HISTORY - 1):
            module.advance(road, cache, kind, size, token[k], pose[k], valid[k])
    paths = []
    for step in range(config.steps):
        if cached:
            logits = module.advance(road, cache, kind, size, token[-1], pose[-1], valid[-1])
        else:
            everything = (torch.stack(parts, dim=2) for parts in (token, pose, valid))
            logits = module.decode(module.encode_road(batch), kind, size, *everything)[:, :, -1]
        chosen = sample(logits, uniform[:, :, step], config)
        path = module.step(pose[-1], kind, chosen)
        paths.append(path[:, :, 1:])
        token.append(chosen)
        pose.append(path[:, :, -1])
        valid.append(valid[-1])
    shape = (len(batch.kind_BA), n)
    return Rollouts(
        torch.stack(token[HISTORY:], dim=2).unflatten(0, shape),
        torch.cat(paths, dim=2).unflatten(0, shape),
        present,
    )


def sample(logits: Tensor, uniform: Tensor, config: RolloutConfig) -> Tensor:
    """Draw tokens among the most probable.

    Parameters
    ----------
    logits : Tensor
        [..., V].
    uniform : Tensor
        [...], from 0 to 1.
    config : RolloutConfig
    """
    best, index = logits.float().topk(min(config.top_k, logits.shape[-1]), dim=-1)
    share = (best / config.temperature).softmax(dim=-1).cumsum(dim=-1)
    place = (share < uniform.float().unsqueeze(-1)).sum(dim=-1, keepdim=True)
    return index.gather(-1, place.clamp(max=index.shape[-1] - 1))[..., 0]


def _repeat(values: Tensor, n: int) -> Tensor:
    """``n`` copies of each scene, together."""
    return values.repeat_interleave(n, dim=0)


def _uniform(batch: ScenarioBatch, config: RolloutConfig) -> Tensor:
    """[B S, A, steps]; 0 for padding."""
    present = batch.valid_BAK[:, :, HISTORY - 1].sum(dim=1).tolist()
    agents = batch.kind_BA.shape[1]
    drawn = np.zeros((len(present), config.samples, agents, config.steps))
    for b, (scene, count) in enumerate(zip(batch.scene_B.tolist(), present, strict=True)):
        random = np.random.default_rng([config.seed, scene])
        drawn[b, :, :count] = random.random((config.samples, count, config.steps))
    return torch.from_numpy(drawn).flatten(0, 1)


def ahead(config: RolloutConfig) -> int:
    """Steps of 0.1 s that a rollout covers."""
    return config.steps * STRIDE
