"""Rollouts of SMART: in every half second each agent takes its next token, and all drive on together.

`rollout` draws tokens at random, for forecasts. The map and the history are encoded once for all rollouts
of a scenario, and keys and values of earlier token steps are kept. The draws follow from uniform numbers
that belong to a scenario, a rollout and an agent, so that other scenarios in the batch, or their number,
change nothing.

`cat_k_rollout` draws nothing, and serves closed-loop training: CAT-K, *closest among top K* (Zhang, Karkus,
Igl et al. 2025, CVPR, arXiv:2412.05334). Each agent takes, among its most probable tokens, the one that
ends nearest to the ground truth. The target at each of these states is the token that leads from there
back to the ground truth.

Shape suffixes: B scenarios, S rollouts of each, A agents, K tokens, T steps of 0.1 s, V tokens of a
vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from millrace.config import Count, Positive, Seed, Settings
from millrace.evaluation.trained_model import finite
from millrace.systems.traffic.dataset import ScenarioBatch
from millrace.systems.traffic.smart.avoidance import CANDIDATES, choose
from millrace.systems.traffic.smart.network import Cache, Smart
from millrace.systems.traffic.tokens import HISTORY, STRIDE, TOKENS
from millrace.systems.traffic.vocabulary import BOXES

_TABULATED = 4096
"""From so many tokens on tables of relations pay: they have the size of those of some hundred tokens."""


class RolloutConfig(Settings):
    """How rollouts are drawn."""

    samples: Count = 32
    """Rollouts of each scenario."""
    steps: Count = TOKENS - HISTORY
    """Tokens ahead."""
    top_k: Count = 32
    """Most probable tokens among which one is drawn, with their probabilities renormalised; 1: the best."""
    temperature: Positive = 1.0
    """Above 1 draws are more even, below 1 more like the best."""
    apart: bool = True
    """Agents that would drive into each other draw again; false: each draws as if alone."""
    seed: Seed = 0
    """Of the draws."""

    @property
    def horizon(self) -> int:
        """Steps of 0.1 s ahead."""
        return self.steps * STRIDE


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Possible futures, in the frames of the scenarios."""

    token_BSAK: Tensor
    pose_BSAT3: Tensor
    """Every 0.1 s, the first 0.1 s after the current step."""
    present_BA: Tensor
    """bool: False for padding."""


@torch.no_grad()
def rollout(
    module: Smart, batch: ScenarioBatch, config: RolloutConfig, cached: bool = True
) -> Rollouts:
    """Draw rollouts from the current step on; later steps of the batch are not used.

    Without ``cached`` everything is computed again for each token, with the same results.
    """
    n = config.samples
    present = batch.valid_BAK[:, :, HISTORY - 1]
    given = (batch.token_BAK, batch.pose_BAK3, batch.valid_BAK)
    history = [t[:, :, :HISTORY] for t in given]
    kind, size = (t.repeat_interleave(n, dim=0) for t in (batch.kind_BA, batch.size_BA2))
    token, pose, valid = ([*t.repeat_interleave(n, dim=0).unbind(2)] for t in history)
    uniform = _uniform(batch, config).to(pose[0])
    tabulate = cached and kind.numel() * config.steps >= _TABULATED
    encoded, cache = module.encode_map(batch, tabulate), Cache()
    if cached:  # up to the current step all rollouts are the same
        for known in zip(*(t.unbind(2) for t in history), strict=True):
            logits = module.advance(encoded, cache, batch.kind_BA, batch.size_BA2, *known)
        logits, cache = logits.repeat_interleave(n, dim=0), cache.repeated(n)
    paths = []
    for step in range(config.steps):
        if cached and step:
            logits = module.advance(encoded, cache, kind, size, token[-1], pose[-1], valid[-1])
        elif not cached:
            everything = (torch.stack(parts, dim=2) for parts in (token, pose, valid))
            logits = module.decode(module.encode_map(batch), kind, size, *everything)[:, :, -1]
        step_BA = kind, size, pose[-1], valid[-1]
        chosen, path = _next_tokens(module, finite(logits), uniform[:, :, step], config, step_BA)
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


def _next_tokens(
    module: Smart,
    logits: Tensor,
    uniform_BA: Tensor,
    config: RolloutConfig,
    agents: tuple[Tensor, Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Tokens of all agents and their paths, from kinds, sizes, poses and presence."""
    kind_BA, size_BA2, pose_BA3, present_BA = agents
    if not config.apart:
        token_BA = sample(logits, uniform_BA, config)
        return token_BA, module.token_poses(pose_BA3, kind_BA, token_BA)
    wanted = min(max(config.top_k, CANDIDATES), logits.shape[-1])
    best_BAC, index_BAC = logits.float().topk(wanted, dim=-1)
    weight_BAC = (best_BAC[..., : config.top_k] / config.temperature).softmax(dim=-1)
    weight_BAC = F.pad(weight_BAC, (0, wanted - weight_BAC.shape[-1]))

    index_NC, pose_N3, kind_N = (t.flatten(0, 1) for t in (index_BAC, pose_BA3, kind_BA))

    def paths(agent_N: Tensor, place_N: Tensor) -> Tensor:
        return module.token_poses(pose_N3[agent_N], kind_N[agent_N], index_NC[agent_N, place_N])

    usable_BAC = module.exists_CV[kind_BA].gather(2, index_BAC)
    place_BA, path = choose(weight_BAC, usable_BAC, uniform_BA.float(), paths, size_BA2, present_BA)
    return index_BAC.gather(2, place_BA.unsqueeze(2))[..., 0], path


def sample(logits: Tensor, uniform: Tensor, config: RolloutConfig) -> Tensor:
    """Draw tokens among the most probable; logits are [..., V], uniform numbers from 0 to 1 [...]."""
    best, index = logits.float().topk(min(config.top_k, logits.shape[-1]), dim=-1)
    share = (best / config.temperature).softmax(dim=-1).cumsum(dim=-1)
    place = (share < uniform.float().unsqueeze(-1)).sum(dim=-1, keepdim=True)
    return index.gather(-1, place.clamp(max=index.shape[-1] - 1))[..., 0]


def _uniform(batch: ScenarioBatch, config: RolloutConfig) -> Tensor:
    """Uniform random numbers, [B S, A, steps]; 0 for padding."""
    present = batch.valid_BAK[:, :, HISTORY - 1].sum(dim=1).tolist()
    agents = batch.kind_BA.shape[1]
    drawn = np.zeros((len(present), config.samples, agents, config.steps))
    for b, (scenario, count) in enumerate(zip(batch.scenario_B.tolist(), present, strict=True)):
        random = np.random.default_rng([config.seed, scenario])
        drawn[b, :, :count] = random.random((config.samples, count, config.steps))
    return torch.from_numpy(drawn).flatten(0, 1)


@torch.no_grad()
def cat_k_rollout(module: Smart, batch: ScenarioBatch, top_k: int) -> tuple[ScenarioBatch, Tensor]:
    """Roll out near the ground truth from the current step on.

    An agent without a true token has none in the rollout, and comes back where the ground truth has it.

    Returns
    -------
    batch : ScenarioBatch
        With the tokens and poses of the rollout.
    target_BAK : Tensor
        int64: the token of the whole vocabulary that would have ended nearest to the ground truth.
    """
    kind, size, true = batch.kind_BA, batch.size_BA2, batch.pose_BAK3
    token, pose = ([*t[:, :, :HISTORY].unbind(2)] for t in (batch.token_BAK, true))
    valid = batch.valid_BAK.unbind(2)
    target = list(token)
    encoded, cache = module.encode_map(batch), Cache()
    for k in range(true.shape[2] - 1):
        logits = module.advance(encoded, cache, kind, size, token[k], pose[k], valid[k])
        if k + 1 < HISTORY:
            continue
        apart_BAV = _squared_distances(module, kind, pose[k], true[:, :, k + 1])
        target.append(apart_BAV.argmin(dim=-1))
        best = logits.topk(min(top_k, logits.shape[-1]), dim=-1).indices
        chosen = best.gather(-1, apart_BAV.gather(-1, best).argmin(dim=-1, keepdim=True))[..., 0]
        goes_on = valid[k] & valid[k + 1]
        end = module.token_poses(pose[k], kind, chosen)[:, :, -1]
        token.append(torch.where(goes_on, chosen, batch.token_BAK[:, :, k + 1]))
        pose.append(torch.where(goes_on[..., None], end, true[:, :, k + 1]))
    rolled = replace(batch, token_BAK=torch.stack(token, dim=2), pose_BAK3=torch.stack(pose, dim=2))
    return rolled, torch.stack(target, dim=2)


def _squared_distances(
    module: Smart, kind_BA: Tensor, pose_BA3: Tensor, true_BA3: Tensor
) -> Tensor:
    """Squared distance between the true box and the box after each token, [B, A, V]; see `vocabulary`."""
    c, s = pose_BA3[..., 2].cos(), pose_BA3[..., 2].sin()
    dx, dy = (true_BA3 - pose_BA3)[..., :2].unbind(-1)
    local = torch.stack([c * dx + s * dy, c * dy - s * dx], dim=-1)
    turn = true_BA3[..., 2] - pose_BA3[..., 2]
    end_BAV3 = module.motion_CVP3[:, :, -1][kind_BA]
    away = (end_BAV3[..., :2] - local[:, :, None]).square().sum(dim=-1)
    radius = torch.as_tensor(BOXES, dtype=away.dtype, device=away.device).square().sum(dim=1) / 4
    half = (end_BAV3[..., 2] - turn[..., None]) / 2
    away = away + 4 * radius[kind_BA][..., None] * half.sin().square()
    return away.masked_fill(~module.exists_CV[kind_BA], torch.inf)
