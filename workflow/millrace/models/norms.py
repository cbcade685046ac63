"""Normalisation of half-precision layers."""

import torch
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """In the precision of its weights, also where the rest is in half precision.

    The gradient of its weights is a sum over all cells: in bfloat16 it stops growing after some hundred.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype)).to(input.dtype)
