"""Weights of points by how much their concentration changes, for the loss.

Salt moves in a narrow zone, and a plain mean over all points hardly sees it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

WEIGHTED = "mass_concentration"
"""The variable that has weights."""


def variance_weights(state_KTV: Tensor, variables: Sequence[str]) -> Tensor:
    """Weight of the error at each point, [K, V]: 0 for all variables but the concentration.

    With v the variance of the states in time, clipped at its 99th percentile v99 over the points,
    w = 0.25 + 0.75 log(1 + v / mean v) / log(1 + v99 / mean v), divided by its mean. States are those of
    one patch or plane in the training period.
    """
    weight_KV = torch.zeros(len(state_KTV), len(variables), device=state_KTV.device)
    if WEIGHTED not in variables:
        return weight_KV
    column = list(variables).index(WEIGHTED)
    variance_K = state_KTV[..., column].double().var(dim=1, correction=0)
    highest = variance_K.quantile(0.99)
    clipped_K = variance_K.clamp(max=highest)
    mean, weight_K = clipped_K.mean(), torch.ones_like(variance_K)
    if mean > 0:
        weight_K = 0.25 + 0.75 * torch.log1p(clipped_K / mean) / torch.log1p(highest / mean)
    weight_KV[:, column] = (weight_K / weight_K.mean()).float()
    return weight_KV
