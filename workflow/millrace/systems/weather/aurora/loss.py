"""Weighted mean absolute error of Aurora (Bodnar et al. 2025, section B.5), on normalised fields.

The weights keep geopotential from being most of the loss; `millrace.systems.weather.rollout.loss_shares`
says how much of it each channel is.
"""

import torch
from torch import Tensor

SURFACE_FACTOR, AIR_FACTOR = 0.25, 1.0
"""alpha and beta of the paper."""
_PRETRAINING = {
    "msl": 1.5, "10u": 0.77, "10v": 0.66, "2t": 3.0,
    "z": 2.8, "q": 0.78, "t": 1.7, "u": 0.87, "v": 0.6,
}  # fmt: skip
_FINE_TUNING = _PRETRAINING | {"2t": 3.5, "msl": 1.6, "z": 3.5, "q": 0.8}
WEIGHTS: dict[str, dict[str, float]] = {
    "pretraining": _PRETRAINING,
    "fine_tuning": _FINE_TUNING,
    "equal": {},
}


def channel_weights(
    surface: tuple[str, ...], air: tuple[str, ...], levels: int, kind: str
) -> Tensor:
    """Weight of the mean absolute error of each channel, [C].

    (alpha sum_k w_k mean|dS_k| + beta sum_k mean_l w_k mean|dA_kl|) / (V_S + V_A); a variable that the
    paper does not know has weight 1.
    """
    known = WEIGHTS[kind]
    surface_C = [SURFACE_FACTOR * known.get(name, 1.0) for name in surface]
    air_C = [AIR_FACTOR * known.get(name, 1.0) / levels for name in air for _ in range(levels)]
    return torch.tensor([*surface_C, *air_C]) / (len(surface) + len(air))


def weighted_mae(forecast_BKCIJ: Tensor, target_BKCIJ: Tensor, weight_C: Tensor) -> Tensor:
    """Loss of each sample, averaged over the steps of the rollout, [B]."""
    error_BKC = (forecast_BKCIJ - target_BKCIJ).abs().mean(dim=(3, 4))
    return (error_BKC * weight_C).sum(dim=2).mean(dim=1)
