"""Tokens that keep agents apart: of two that would drive into each other, one draws again.

A model of next tokens gives each agent its distribution, and agents draw independently: nobody knows what
the others choose for the next half second, so that they collide more often than people who look ahead. Here
draws are rejected as long as boxes overlap that did not at the beginning of the step: one agent at a time,
which draws approximately from the joint distribution without collisions.

Shape suffixes: B scenes (scenarios times rollouts), A agents, C candidates, T steps of 0.1 s, M pairs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CANDIDATES = 32
"""Most probable tokens of an agent; beyond ``top_k`` they are a last resort, where all of these collide."""
_ROUNDS = 64
_FARTHEST_M = 25.0
"""In half a second: 180 km/h."""


def choose(
    weight_BAC: Tensor,
    usable_BAC: Tensor,
    uniform_BA: Tensor,
    paths: Callable[[Tensor], Tensor],
    size_BA2: Tensor,
    present_BA: Tensor,
) -> tuple[Tensor, Tensor]:
    """Draw a candidate for each agent, so that boxes that are apart stay apart.

    Parameters
    ----------
    weight_BAC : Tensor
        Probabilities of the candidates, the most probable first; 0 for those that are a last resort.
    usable_BAC : Tensor
        bool: whether a candidate exists; vocabularies of classes may have fewer. The first one does.
    uniform_BA : Tensor
        Uniform random numbers, that decide the draws.
    paths : callable
        Candidates, int64[B, A] -> poses, [B, A, T, 3], of which the first are those at present (m, rad).
    size_BA2 : Tensor
        Length and width (m).
    present_BA : Tensor
        bool: False for padding.

    Returns
    -------
    place_BA, path_BAT3 : Tensor
        The candidates, and their `paths`.
    """
    left_BAC = usable_BAC.clone()
    place_BA = _draw(weight_BAC, left_BAC, uniform_BA)
    path_BAT3 = paths(place_BA)
    pair_3M = _near(path_BAT3, size_BA2, present_BA)
    before_M = overlap(path_BAT3[:, :, :1], size_BA2, pair_3M)
    pair_3M = pair_3M[:, ~before_M]
    for _ in range(_ROUNDS):
        b, one, other = pair_3M[:, overlap(path_BAT3[:, :, 1:], size_BA2, pair_3M)]
        # The one of the two that chose what is less probable yields, or the other if it has nothing left.
        chance_BA = weight_BAC.gather(2, place_BA.unsqueeze(2))[..., 0]
        chance_BA = chance_BA.where(left_BAC.sum(dim=2) > 1, torch.inf)
        yields = torch.where(chance_BA[b, one] < chance_BA[b, other], one, other)
        can = chance_BA[b, yields].isfinite()
        b, yields = b[can], yields[can]
        if not len(b):
            break
        left_BAC[b, yields, place_BA[b, yields]] = False
        redrawn_BA = torch.zeros_like(present_BA)
        redrawn_BA[b, yields] = True
        place_BA = torch.where(redrawn_BA, _draw(weight_BAC, left_BAC, uniform_BA), place_BA)
        path_BAT3 = paths(place_BA)
    return place_BA, path_BAT3


def _draw(weight_BAC: Tensor, left_BAC: Tensor, uniform_BA: Tensor) -> Tensor:
    """Draw among what is left; the most probable of the last resorts where nothing else is."""
    share_BAC = (weight_BAC * left_BAC).cumsum(dim=-1)
    total_BA = share_BAC[..., -1]
    reached_BAC = share_BAC >= (uniform_BA * total_BA).unsqueeze(-1)
    drawn_BA = (reached_BAC & left_BAC).int().argmax(dim=-1)
    return torch.where(total_BA > 0, drawn_BA, left_BAC.int().argmax(dim=-1))


def _near(path_BAT3: Tensor, size_BA2: Tensor, present_BA: Tensor) -> Tensor:
    """Pairs of agents that could meet within a step, int64[3, M]: scene, one, other."""
    reach_BA = size_BA2.norm(dim=-1) / 2 + _FARTHEST_M
    apart_BAA = torch.cdist(path_BAT3[:, :, 0, :2], path_BAT3[:, :, 0, :2])
    near = apart_BAA < reach_BA.unsqueeze(1) + reach_BA.unsqueeze(2)
    near &= present_BA.unsqueeze(1) & present_BA.unsqueeze(2)
    return near.triu(diagonal=1).nonzero().T


def overlap(path_BAT3: Tensor, size_BA2: Tensor, pair_3M: Tensor) -> Tensor:
    """Whether boxes overlap at any of the steps, bool[M], by the separating axis theorem."""
    b, one, other = pair_3M
    pose_MT3, its_MT3 = path_BAT3[b, one], path_BAT3[b, other]
    half_M12, its_half_M12 = (size_BA2[b, which].unsqueeze(1) / 2 for which in (one, other))
    offset_MT2 = its_MT3[..., :2] - pose_MT3[..., :2]
    turn_MT = its_MT3[..., 2] - pose_MT3[..., 2]
    c, s = turn_MT.cos().abs(), turn_MT.sin().abs()
    meet = torch.ones_like(turn_MT, dtype=torch.bool)
    boxes = ((pose_MT3, half_M12, its_half_M12), (its_MT3, its_half_M12, half_M12))
    for frame_MT3, own_M12, others_M12 in boxes:
        ahead, left = frame_MT3[..., 2].cos(), frame_MT3[..., 2].sin()
        x, y = offset_MT2.unbind(-1)
        length, width = others_M12.unbind(-1)
        meet &= (x * ahead + y * left).abs() < own_M12[..., 0] + c * length + s * width
        meet &= (y * ahead - x * left).abs() < own_M12[..., 1] + s * length + c * width
    return meet.any(dim=1)
