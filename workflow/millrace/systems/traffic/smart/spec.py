"""The `ModelSpec` of SMART: its loss, its forecast, and how it is built."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from millrace.models.spec import ModelSpec
from millrace.systems.traffic.dataset import ScenarioBatch, ScenarioDataset
from millrace.systems.traffic.settings import SmartConfig
from millrace.systems.traffic.smart.kernels import KERNELS
from millrace.systems.traffic.smart.network import Smart
from millrace.systems.traffic.smart.rollout import cat_k_rollout
from millrace.systems.traffic.tracks import CLASSES


def next_motion(module: nn.Module, batch: ScenarioBatch) -> Tensor:
    """Mean motion to the end of the next token under the model, like `ScenarioBatch.y_KBTV`.

    [A, B, K - 1, 4]: x, y (m), and the means of cosine and sine of the turn; 0 where there is no token.
    """
    logits, _ = module(batch)
    end_CV3 = cast(Smart, module).motion_CVP3[:, :, -1]
    change = torch.cat([end_CV3[..., :2], end_CV3[..., 2:].cos(), end_CV3[..., 2:].sin()], dim=-1)
    share = logits.softmax(dim=-1).to(change.dtype)
    mean = torch.stack([share @ change[kind] for kind in range(len(change))], dim=-2)
    chosen = batch.kind_BA[:, :, None, None, None].expand(*mean.shape[:3], 1, 4)
    mean = mean.gather(3, chosen)[..., 0, :]
    valid = batch.valid_BAK[:, :, 1:] & batch.valid_BAK[:, :, :-1]
    return (mean * valid[..., None]).transpose(0, 1)


def token_loss(module: nn.Module, batch: ScenarioBatch, config: Any) -> Tensor:
    """Cross entropy of the next motion tokens of each scenario, and of its masked road tokens, [B]."""
    del config  # losses of fields have no meaning here
    inner = cast(Smart, getattr(module, "module", module))
    settings, target_BAK = inner.config, batch.token_BAK
    if settings.closed_loop:
        batch, target_BAK = cat_k_rollout(inner, batch, settings.closed_loop)
    logits, road_logits = module(batch)
    valid = batch.valid_BAK[:, :, 1:] & batch.valid_BAK[:, :, :-1]
    exists = inner.exists_CV[batch.kind_BA][:, :, None]
    each = _smooth_entropy(logits, target_BAK[:, :, 1:], exists, settings.label_smoothing)
    loss_B = _mean(each, valid)
    follower = batch.road_next_BM.clamp(min=0)
    target = batch.road_token_BM.gather(1, follower)
    wanted = (batch.road_next_BM >= 0) & batch.road_masked_BM.gather(1, follower)
    everything = torch.ones(road_logits.shape[-1], dtype=torch.bool, device=road_logits.device)
    each = _smooth_entropy(road_logits, target, everything, settings.label_smoothing)
    return loss_B + settings.road_weight * _mean(each, wanted)


def _smooth_entropy(logits: Tensor, target: Tensor, exists: Tensor, smoothing: float) -> Tensor:
    """Cross entropy with label smoothing over the tokens that exist."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logs = wide.log_softmax(dim=-1)
    hit = -logs.gather(-1, target[..., None])[..., 0]
    spread = -(logs * exists).sum(dim=-1) / exists.sum(dim=-1)
    return (1 - smoothing) * hit + smoothing * spread


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all axes but the first where the mask is True, [B]; 0 where it is nowhere."""
    total = (values * mask).flatten(1).sum(dim=1)
    return total / mask.flatten(1).sum(dim=1).clamp(min=1)


def build(config: SmartConfig, dataset: ScenarioDataset) -> Smart:
    """Build the model for the vocabularies of a dataset."""
    vocabulary = dataset.vocabulary
    motion = torch.zeros(len(CLASSES), vocabulary.width, *vocabulary.motion[0].shape[1:])
    for kind, tokens in enumerate(vocabulary.motion):
        motion[kind, : len(tokens)] = torch.from_numpy(tokens)
    count = torch.tensor([len(tokens) for tokens in vocabulary.motion])
    return Smart(config, motion, count, torch.from_numpy(vocabulary.road))


SPEC = ModelSpec(
    name="smart",
    config=SmartConfig,
    build=build,
    predict=next_motion,
    loss=token_loss,
    kernels=KERNELS,
    recomputed=("map_layers.*", "layers.*.*"),
    matching_buffers={"motion_CVP3": "vocabulary of motion", "road_V6": "vocabulary of road"},
)
