"""Tokens that keep agents apart: of two that would drive into each other, one draws again.

A model of next tokens gives each agent its distribution, and agents draw independently: nobody knows what
the others choose for the next half second, so that they collide more often than people who look ahead. Here
draws are rejected as long as boxes overlap that did not at the beginning of the step: one agent at a time,
which draws approximately from the joint distribution without collisions.

Few draw again in a round: what concerns the others, and the pairs among them, is not computed anew.

Shape suffixes: B scenes (scenarios times rollouts), A agents, N agents of all scenes, C candidates, T steps
of 0.1 s, M pairs.
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
    paths: Callable[[Tensor, Tensor], Tensor],
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
        Numbers of agents among those of all scenes and a candidate of each, both int64[N] -> poses,
        [N, T, 3], of which the first are those at present (m, rad).
    size_BA2 : Tensor
        Length and width (m).
    present_BA : Tensor
        bool: False for padding.

    Returns
    -------
    place_BA, path_BAT3 : Tensor
        The candidates, and their `paths`.
    """
    given = (weight_BAC, usable_BAC, uniform_BA, size_BA2)
    weight_NC, usable_NC, uniform_N, size_N2 = (t.flatten(0, 1) for t in given)
    left_NC = usable_NC.clone()
    place_N = _draw(weight_NC, left_NC, uniform_N)
    everyone_N = torch.arange(len(place_N), device=place_N.device)
    path_NT3 = paths(everyone_N, place_N)
    now_BA3 = path_NT3[:, 0].unflatten(0, present_BA.shape)
    pair_2M = _near(now_BA3, size_BA2, present_BA)
    pair_2M = pair_2M[:, ~overlap(path_NT3[:, :1], size_N2, pair_2M)]
    meets_M = overlap(path_NT3[:, 1:], size_N2, pair_2M)
    for _ in range(_ROUNDS):
        pair = pair_2M[:, meets_M]
        # The one of the two that chose what is less probable yields, or the other if it has nothing left.
        chance = weight_NC[pair, place_N[pair]].where(left_NC[pair].sum(dim=-1) > 1, torch.inf)
        yields = torch.where(chance[0] < chance[1], *pair)[chance.amin(dim=0).isfinite()]
        if not len(yields):
            break
        yields = yields.unique()
        left_NC[yields, place_N[yields]] = False
        place_N[yields] = _draw(weight_NC[yields], left_NC[yields], uniform_N[yields])
        path_NT3[yields] = paths(yields, place_N[yields])
        redrawn_N = torch.zeros_like(place_N, dtype=torch.bool)
        redrawn_N[yields] = True
        redrawn_M = redrawn_N[pair_2M].any(dim=0)
        meets_M[redrawn_M] = overlap(path_NT3[:, 1:], size_N2, pair_2M[:, redrawn_M])
    # Sines of few numbers differ from those of many in the last digit.
    path_NT3 = paths(everyone_N, place_N)
    return place_N.view_as(present_BA), path_NT3.unflatten(0, present_BA.shape)


def _draw(weight_NC: Tensor, left_NC: Tensor, uniform_N: Tensor) -> Tensor:
    """Draw among what is left; the most probable of the last resorts where nothing else is."""
    share_NC = (weight_NC * left_NC).cumsum(dim=-1)
    total_N = share_NC[:, -1]
    reached_NC = share_NC >= (uniform_N * total_N).unsqueeze(-1)
    drawn_N = (reached_NC & left_NC).int().argmax(dim=-1)
    return torch.where(total_N > 0, drawn_N, left_NC.int().argmax(dim=-1))


def _near(pose_BA3: Tensor, size_BA2: Tensor, present_BA: Tensor) -> Tensor:
    """Pairs of agents that could meet within a step, int64[2, M]: numbers among those of all scenes."""
    reach_BA = size_BA2.norm(dim=-1) / 2 + _FARTHEST_M
    apart_BAA = torch.cdist(pose_BA3[..., :2], pose_BA3[..., :2])
    near = apart_BAA < reach_BA.unsqueeze(1) + reach_BA.unsqueeze(2)
    near &= present_BA.unsqueeze(1) & present_BA.unsqueeze(2)
    scene, *pair = near.triu(diagonal=1).nonzero().T
    return torch.stack(pair) + scene * present_BA.shape[1]


def overlap(path_NT3: Tensor, size_N2: Tensor, pair_2M: Tensor) -> Tensor:
    """Whether boxes of pairs of agents overlap at any of the steps, bool[M]."""
    centre_2MT2 = path_NT3[..., :2][pair_2M]
    apart_MT = (centre_2MT2[0] - centre_2MT2[1]).square().sum(dim=-1)
    reach_M = size_N2.norm(dim=-1)[pair_2M].sum(dim=0) / 2
    # Boxes are within their circles; a little more, so that rounding does not decide.
    meet_M = (apart_MT < 1.01 * reach_M.square().unsqueeze(1)).any(dim=1)
    meet_M[meet_M.clone()] = _boxes_overlap(path_NT3, size_N2, pair_2M[:, meet_M])
    return meet_M


def _boxes_overlap(path_NT3: Tensor, size_N2: Tensor, pair_2M: Tensor) -> Tensor:
    """The same by the separating axis theorem."""
    pose_MT3, its_MT3 = path_NT3[pair_2M]
    half_M12, its_half_M12 = size_N2[pair_2M].unsqueeze(2) / 2
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
