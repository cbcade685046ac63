"""Weights of points by how much their concentration changes, for the loss.

Salt moves in a narrow zone, and a plain mean over all points hardly sees it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_WEIGHED = "mass_concentration"


def weighted(variables: Sequence[str]) -> str | None:
    """The one of some variables that `variance_weights` is of; None: there is none."""
    return _WEIGHED if _WEIGHED in variables else None


def variance_weights(state_KTV: Tensor, variables: Sequence[str]) -> Tensor:
    """Weight of the error at each point, [K, V]: 0 for all variables but the concentration.

    With v the variance in time, clipped at its 99th percentile v99 over the points,
    w = 0.25 + 0.75 log(1 + v / mean v) / log(1 + v99 / mean v), divided by its mean.

    Parameters
    ----------
    state_KTV : Tensor
        States of the points of one patch or plane in the training period.
    variables : sequence of str
        Names of the V variables.
    """
    weight_KV = torch.zeros(len(state_KTV), len(variables), device=state_KTV.device)
    for v, name in enumerate(variables):
        if name == _WEIGHED:
            weight_KV[:, v] = _weights(state_KTV[..., v].double().var(dim=1, correction=0)).float()
    return weight_KV


def _weights(variance_K: Tensor) -> Tensor:
    highest = variance_K.quantile(0.99)
    clipped_K = variance_K.clamp(max=highest)
    mean = clipped_K.mean()
    if not mean > 0:
        return torch.ones_like(variance_K)
    weight_K = 0.25 + 0.75 * torch.log1p(clipped_K / mean) / torch.log1p(highest / mean)
    return weight_K / weight_K.mean()
