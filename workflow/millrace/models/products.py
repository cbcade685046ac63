"""Products of matrices in float32 on a CPU: by oneDNN, on processors of AMD.

PyTorch takes them to MKL, which leaves half of the vector units of these processors idle. The same PyTorch
has the products of oneDNN, which its compiler uses; they have no gradients of their own.

Shape suffixes: R rows, I channels in, O channels out.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

_INFORMATION = Path("/proc/cpuinfo")
_IS_AMD = _INFORMATION.exists() and "AuthenticAMD" in _INFORMATION.read_text()
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ONEDNN = HAS_ONEDNN and _IS_AMD
"""Whether products go to oneDNN: the same in all processes on a machine, so that runs repeat bit by bit."""
LEAST = 1 << 21
"""Multiplications from which on oneDNN is faster, with and without gradients."""
WIDE = 64
"""Channels of both sides from which on it is faster for gradients of weights, too."""


def _operations(a_RI: torch.Size, b_OI: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * a_RI.numel() * b_OI[0]


if HAS_ONEDNN:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_operations)


def is_eager(x: Tensor) -> bool:
    """Whether values are worked on as they are: eagerly, on a CPU, in their own precision."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def product(a_RI: Tensor, b_OI: Tensor) -> Tensor:
    """``a @ b.T`` without gradients; both are contiguous, or their transposes are."""
    if _suits(a_RI, b_OI):
        return _onednn(a_RI, b_OI)
    return functional.linear(a_RI, b_OI)


def add_product(sum_RO: Tensor, a_RI: Tensor, b_OI: Tensor) -> None:
    """Add ``a @ b.T`` in place."""
    if min(b_OI.shape) >= WIDE and _suits(a_RI, b_OI):
        sum_RO += _onednn(a_RI.contiguous(), b_OI)
    else:
        torch.addmm(sum_RO, a_RI, b_OI.t(), out=sum_RO)  # which `FlopCounterMode` counts


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`functional.linear`, with gradients."""
    given = [one for one in (x, weight_OI, bias_O) if one is not None]
    # Parts of a model that is divided are of a type of their own.
    plain = all(type(one) in (Tensor, nn.Parameter) for one in given)
    transformed = torch._C._functorch.peek_interpreter_stack() is not None  # by torch.func
    if transformed or not (plain and _suits(x, weight_OI)):
        return functional.linear(x, weight_OI, bias_O)
    if torch.is_grad_enabled() and any(one.requires_grad for one in given):
        made: Tensor = _Linear.apply(x, weight_OI, bias_O)
        return made
    return _onednn(x, weight_OI, bias_O)


class Linear(nn.Linear):
    """`nn.Linear` with the same weights, see `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        return linear(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        made = _onednn(x.reshape(-1, x.shape[-1]), weight_OI, bias_O)
        # No view, which must not be changed in place by what follows.
        return torch.ops.aten._unsafe_view(made, [*x.shape[:-1], len(weight_OI)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias = ctx.needs_input_grad
        g_RO, x_RI = gradient.reshape(-1, len(weight_OI)), x.reshape(-1, weight_OI.shape[1])
        # By functions that have gradients: these may be asked for, too.
        grad_x = linear(g_RO, weight_OI.t()).view_as(x) if wanted_x else None
        grad_weight = None
        if wanted_weight:
            wide = min(weight_OI.shape) >= WIDE
            grad_weight = linear(g_RO.t(), x_RI.t()) if wide else g_RO.t() @ x_RI
        return grad_x, grad_weight, g_RO.sum(0) if wanted_bias else None


def _suits(a: Tensor, b_OI: Tensor) -> bool:
    single = a.dtype == b_OI.dtype == torch.float32
    return ONEDNN and single and is_eager(a) and a.numel() * len(b_OI) >= LEAST


def _onednn(a: Tensor, b_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b_OI, bias_O, "none", [], "")
