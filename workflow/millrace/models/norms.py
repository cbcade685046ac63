"""Normalisation layers of half-precision models."""

import torch
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that computes in the precision of its weights, also under autocast.

    The gradient of its weights is a sum over all cells: in bfloat16 it stops growing after some hundred.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype)).to(input.dtype)
