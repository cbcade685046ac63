"""Tokens that keep agents apart: of two that would drive into each other, one draws again.

A model of next tokens gives each agent its distribution, and agents draw independently: nobody knows what
the others choose for the next half second, so that they collide more often than people who look ahead. Here
draws are rejected as long as boxes overlap that did not at the beginning of the step: one agent at a time,
which draws approximately from the joint distribution without collisions.

Few draw again in a round: what concerns the others, and the pairs among them, is not computed anew. On so
few numbers NumPy is several times faster than PyTorch, most of whose time would be that of calls.

Shape suffixes: B scenes (scenarios times rollouts), A agents, N agents of all scenes, C candidates, T steps
of 0.1 s, M pairs.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
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
    weight_NC, usable_NC, uniform_N, size_N2 = (t.flatten(0, 1).numpy(force=True) for t in given)
    left_NC = usable_NC.copy()
    place_N = _draw(weight_NC, left_NC, uniform_N)

    def poses(agent_N: NDArray[np.int64]) -> Tensor:
        both = (torch.from_numpy(x).to(size_BA2.device) for x in (agent_N, place_N[agent_N]))
        return paths(*both)

    everyone_N = np.arange(len(place_N))
    first = poses(everyone_N)
    path_NT3 = first.numpy(force=True)
    now_BA3 = first[:, 0].unflatten(0, present_BA.shape)
    pair_2M = _near(now_BA3, size_BA2, present_BA).numpy(force=True)
    pair_2M = pair_2M[:, ~overlap(path_NT3[:, :1], size_N2, pair_2M)]
    meets_M = overlap(path_NT3[:, 1:], size_N2, pair_2M)
    for _ in range(_ROUNDS):
        pair = pair_2M[:, meets_M]
        # The one of the two that chose what is less probable yields, or the other if it has nothing left.
        more = left_NC[pair].sum(axis=-1) > 1
        chance = np.where(more, weight_NC[pair, place_N[pair]], np.inf)
        yields = np.where(chance[0] < chance[1], *pair)[np.isfinite(chance.min(axis=0))]
        if not len(yields):
            break
        yields = np.unique(yields)
        left_NC[yields, place_N[yields]] = False
        place_N[yields] = _draw(weight_NC[yields], left_NC[yields], uniform_N[yields])
        path_NT3[yields] = poses(yields).numpy(force=True)
        redrawn_N = np.zeros(len(place_N), dtype=bool)
        redrawn_N[yields] = True
        redrawn_M = redrawn_N[pair_2M[0]] | redrawn_N[pair_2M[1]]
        meets_M[redrawn_M] = overlap(path_NT3[:, 1:], size_N2, pair_2M[:, redrawn_M])
    # Sines of few numbers differ from those of many in the last digit.
    place_BA = torch.from_numpy(place_N).to(size_BA2.device).view(present_BA.shape)
    return place_BA, poses(everyone_N).unflatten(0, present_BA.shape)


def _draw(
    weight_NC: NDArray[np.floating], left_NC: NDArray[np.bool_], uniform_N: NDArray[np.floating]
) -> NDArray[np.int64]:
    """Draw among what is left; the most probable of the last resorts where nothing else is."""
    # Sums in double precision, as those of PyTorch, from which a draw without others follows.
    share_NC = (weight_NC * left_NC).cumsum(axis=-1, dtype=np.float64).astype(weight_NC.dtype)
    total_N = share_NC[:, -1]
    reached_NC = share_NC >= (uniform_N * total_N)[:, None]
    drawn_N = (reached_NC & left_NC).argmax(axis=-1)
    return np.where(total_N > 0, drawn_N, left_NC.argmax(axis=-1))


def _near(pose_BA3: Tensor, size_BA2: Tensor, present_BA: Tensor) -> Tensor:
    """Pairs of agents that could meet within a step, int64[2, M]: numbers among those of all scenes."""
    reach_BA = size_BA2.norm(dim=-1) / 2 + _FARTHEST_M
    apart_BAA = torch.cdist(pose_BA3[..., :2], pose_BA3[..., :2])
    near = apart_BAA < reach_BA.unsqueeze(1) + reach_BA.unsqueeze(2)
    near &= present_BA.unsqueeze(1) & present_BA.unsqueeze(2)
    scene, *pair = near.triu(diagonal=1).nonzero().T
    return torch.stack(pair) + scene * present_BA.shape[1]


def overlap(
    path_NT3: NDArray[np.floating], size_N2: NDArray[np.floating], pair_2M: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether boxes of pairs of agents overlap at any of the steps, bool[M]."""
    apart_MT2 = path_NT3[pair_2M[0], :, :2] - path_NT3[pair_2M[1], :, :2]
    reach_N = np.hypot(size_N2[:, 0], size_N2[:, 1]) / 2
    reach_M = reach_N[pair_2M[0]] + reach_N[pair_2M[1]]
    # Boxes are within their circles; a little more, so that rounding does not decide.
    away_MT = np.square(apart_MT2[..., 0]) + np.square(apart_MT2[..., 1])
    meet_M = (away_MT < 1.01 * np.square(reach_M)[:, None]).any(axis=1)
    close = meet_M.nonzero()[0]
    if len(close):
        meet_M[close] = _boxes_overlap(path_NT3, size_N2, pair_2M[:, close])
    return meet_M


def _boxes_overlap(
    path_NT3: NDArray[np.floating], size_N2: NDArray[np.floating], pair_2M: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """The same by the separating axis theorem."""
    pose_MT3, its_MT3 = path_NT3[pair_2M]
    half_M12, its_half_M12 = size_N2[pair_2M][:, :, None] / 2
    apart_MT3 = its_MT3 - pose_MT3
    x, y, turn_MT = (apart_MT3[..., number] for number in range(3))
    c, s = np.abs(np.cos(turn_MT)), np.abs(np.sin(turn_MT))
    meet = np.ones_like(turn_MT, dtype=bool)
    boxes = ((pose_MT3, half_M12, its_half_M12), (its_MT3, its_half_M12, half_M12))
    for frame_MT3, own_M12, others_M12 in boxes:
        ahead, left = np.cos(frame_MT3[..., 2]), np.sin(frame_MT3[..., 2])
        length, width = others_M12[..., 0], others_M12[..., 1]
        meet &= np.abs(x * ahead + y * left) < own_M12[..., 0] + c * length + s * width
        meet &= np.abs(y * ahead - x * left) < own_M12[..., 1] + s * length + c * width
    return np.asarray(meet.any(axis=1))
