"""Linear layers by oneDNN, where no gradients are wanted: on processors of AMD twice as fast as by MKL.

PyTorch takes products in float32 by MKL, which keeps its best kernels for processors of Intel. The same
PyTorch has the products of oneDNN, which its compiler uses; they have no gradients of their own.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

_ONEDNN = None
if torch.backends.mkldnn.is_available():
    _ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class Linear(nn.Linear):
    """`nn.Linear` with the same weights, see `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear`; which product it takes depends on nothing that changes from run to run."""
    wide = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if (
        _ONEDNN is None
        or not wide
        or not x.numel()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        return functional.linear(x, weight, bias)
    return _ONEDNN(x, weight, bias, "none", [], "")
