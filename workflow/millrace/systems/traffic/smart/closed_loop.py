"""Closed-loop training: the model drives itself near the truth, and learns to come back to it.

CAT-K (Zhang, Karkus, Igl et al. 2025, CVPR, arXiv:2412.05334): in each half second every road user takes,
among its most probable tokens, the one that ends nearest to the truth. What is learnt at each of these
states is the token that leads from there back to the truth. Nothing is drawn at random.

Shape suffixes as in `millrace.systems.traffic.smart.network`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from millrace.systems.traffic.dataset import ScenarioBatch
from millrace.systems.traffic.smart.network import Cache, Smart
from millrace.systems.traffic.tokens import HISTORY
from millrace.systems.traffic.vocabulary import BOXES


@torch.no_grad()
def near_truth(module: Smart, batch: ScenarioBatch, top_k: int) -> tuple[ScenarioBatch, Tensor]:
    """Roll out from the present on.

    Who is not seen in the truth is not there in the rollout, and comes back where the truth has it.

    Parameters
    ----------
    module : Smart
    batch : ScenarioBatch
    top_k : int
        Most probable tokens among which the nearest to the truth is taken.

    Returns
    -------
    batch : ScenarioBatch
        With the tokens and poses of the rollout.
    target_BAK : Tensor
        int64: the token of the whole vocabulary that would have been nearest to the truth.
    """
    kind, size, true = batch.kind_BA, batch.size_BA2, batch.pose_BAK3
    token, pose = ([*t[:, :, :HISTORY].unbind(2)] for t in (batch.token_BAK, true))
    valid = batch.valid_BAK.unbind(2)
    target = list(token)
    road, cache = module.encode_road(batch), Cache()
    for k in range(true.shape[2] - 1):
        logits = module.advance(road, cache, kind, size, token[k], pose[k], valid[k])
        if k + 1 < HISTORY:
            continue
        apart_BAV = _apart(module, kind, pose[k], true[:, :, k + 1])
        target.append(apart_BAV.argmin(dim=-1))
        best = logits.topk(min(top_k, logits.shape[-1]), dim=-1).indices
        chosen = best.gather(-1, apart_BAV.gather(-1, best).argmin(dim=-1, keepdim=True))[..., 0]
        goes_on = valid[k] & valid[k + 1]
        end = module.step(pose[k], kind, chosen)[:, :, -1]
        token.append(torch.where(goes_on, chosen, batch.token_BAK[:, :, k + 1]))
        pose.append(torch.where(goes_on[..., None], end, true[:, :, k + 1]))
    rolled = replace(batch, token_BAK=torch.stack(token, dim=2), pose_BAK3=torch.stack(pose, dim=2))
    return rolled, torch.stack(target, dim=2)


def _apart(module: Smart, kind_BA: Tensor, pose_BA3: Tensor, true_BA3: Tensor) -> Tensor:
    """Square of the distance of boxes (see `vocabulary`) after each token, [B, A, V]."""
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
