r"""The temperature of next tokens that fits data best.

Logits z of V tokens over a temperature T give probabilities softmax(z / T). The mean log loss is convex in
b = 1 / T, with the derivatives :math:`\sum (E_p[z] - z_y)` and :math:`\sum \mathrm{Var}_p(z)`, so that few
steps of Newton find its minimum (Guo et al. 2017, ICML, arXiv:1706.04599, sec. 4.2, calls it temperature
scaling). Which token is the most probable does not change.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Tokens = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives, each time it is called, logits [N, V] and true tokens [N] of all data, some at a time."""
BOUNDS = (0.2, 5.0)
"""Of 1 / T."""
_PASSES = 8
_ENOUGH = 1e-3


def fitted_temperature(tokens: Tokens) -> dict[str, Any] | None:
    """``value`` of T, and the mean log losses with 1, ``log_loss``, and with it, ``calibrated_log_loss``.

    None if there is no token.
    """
    inverse, first, found = 1.0, None, None
    for _ in range(_PASSES):
        count, loss, slope, curvature = _sums(tokens, inverse)
        if not count:
            return None
        first = loss / count if first is None else first
        wanted = inverse - slope / curvature if curvature else inverse
        # Far from the minimum a step may be too long.
        wanted = min(max(wanted, inverse / 2, BOUNDS[0]), inverse * 2, BOUNDS[1])
        found = {"value": 1 / inverse, "log_loss": first, "calibrated_log_loss": loss / count}
        if abs(wanted / inverse - 1) < _ENOUGH:
            break
        inverse = wanted
    return found


@torch.no_grad()
def _sums(tokens: Tokens, inverse: float) -> tuple[int, float, float, float]:
    """Number of tokens, log loss, and its derivatives by 1 / T, all summed."""
    count, sums = 0, torch.zeros(3, dtype=torch.float64)
    for logits, token in tokens():
        z = logits.float()
        z = z - z.amax(dim=-1, keepdim=True)
        log = (inverse * z).log_softmax(dim=-1)
        p, own = log.exp(), token[:, None]
        mean = (p * z).sum(dim=-1)
        variance = (p * (z - mean[:, None]).square()).sum(dim=-1)
        parts = (-log.gather(1, own)[:, 0], mean - z.gather(1, own)[:, 0], variance)
        sums += torch.stack([one.double().sum() for one in parts]).cpu()
        count += len(token)
    loss, slope, curvature = sums.tolist()
    return count, loss, slope, curvature
