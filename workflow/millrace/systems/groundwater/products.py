"""Products of matrices on a CPU, and networks of linear layers that are worked on part by part.

PyTorch takes products of float32 matrices to MKL, which on processors of other makers than Intel leaves
half of their vector units idle; oneDNN, which PyTorch has as well, does not. Parts of the values stay in
the cache from layer to layer, forward and backward, and only what is given and the values before
activations are kept.

Shape suffixes: R columns of values, I channels in, O channels out.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

CACHED_BYTES = 1 << 21
"""Of a part of the widest values; smaller parts cost more calls than the nearer cache saves."""

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _operations(a_RI: torch.Size, b_OI: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * a_RI.numel() * b_OI[0]


if _ONEDNN:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_operations)


def in_parts(x: Tensor) -> bool:
    """Whether values are worked on part by part: eagerly, on a CPU, in their own precision."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def parts(count: int, nbytes: int) -> Iterator[slice]:
    """Parts of so many rows or columns, of so many bytes each, which the cache holds."""
    step = max(1, CACHED_BYTES // max(1, nbytes))
    return (slice(begin, min(count, begin + step)) for begin in range(0, count, step))


def product(a_RI: Tensor, b_OI: Tensor) -> Tensor:
    """``a @ b.T``; both are contiguous, or their transposes are."""
    if _by_onednn(a_RI):
        return torch.ops.mkldnn._linear_pointwise(a_RI, b_OI, None, "none", [], "")
    return functional.linear(a_RI, b_OI)


def add_product(sum_RO: Tensor, a_RI: Tensor, b_OI: Tensor) -> None:
    """Add ``a @ b.T`` in place."""
    if min(b_OI.shape) >= _WORTH_COPYING and _by_onednn(a_RI):
        sum_RO += product(a_RI.contiguous(), b_OI)
    else:
        torch.addmm(sum_RO, a_RI, b_OI.t(), out=sum_RO)  # which `FlopCounterMode` counts


def _by_onednn(a: Tensor) -> bool:
    return _ONEDNN and a.dtype == torch.float32 and in_parts(a) and a.numel() > 0


_WORTH_COPYING = 64
"""Channels, from which on oneDNN wins although its product is another tensor, and ``a`` may be copied."""


class Layers(torch.autograd.Function):
    """Linear layers with GELU between them, and before the first one if ``activated``, on a CPU."""

    @staticmethod
    def forward(ctx: Any, x_IR: Tensor, activated: bool, rows: bool, *parameters: Tensor) -> Tensor:
        """``parameters``: weight and bias of each layer. [O, R], or with ``rows`` a view of [R, O]."""
        weights, biases = parameters[::2], parameters[1::2]
        out_OR = _empty(x_IR, (len(weights[-1]), x_IR.shape[1]), rows)
        widest = max(max(w.shape) for w in weights) * x_IR.element_size()
        ctx.parts, ctx.activated, kept = [*parts(x_IR.shape[1], widest)], activated, []
        for part in ctx.parts:
            h = x_IR[:, part].contiguous()
            for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                kept.append(h)
                if number or activated:
                    h = functional.gelu(h)
                h = product(weight, h.t()).add_(bias[:, None])
            out_OR[:, part] = h
        ctx.rows = not x_IR.is_contiguous()
        ctx.save_for_backward(*weights, *kept)
        return out_OR

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of values, then of weights and biases."""
        count = len(ctx.saved_tensors) // (len(ctx.parts) + 1)
        weights, kept = ctx.saved_tensors[:count], iter(ctx.saved_tensors[count:])
        g_OR, grad_x = gradients[0], None
        if ctx.needs_input_grad[0]:
            grad_x = _empty(g_OR, (weights[0].shape[1], g_OR.shape[1]), ctx.rows)
        grads = [(torch.zeros_like(w), w.new_zeros(len(w))) for w in weights]
        for part in ctx.parts:
            before = [next(kept) for _ in weights]
            g = g_OR[:, part].contiguous()
            for number in reversed(range(count)):
                h, weight, (grad_weight, grad_bias) = before[number], weights[number], grads[number]
                active = number or ctx.activated
                grad_weight += product(g, functional.gelu(h) if active else h)
                grad_bias += g.sum(1)
                if number or grad_x is not None:
                    g = product(weight.t(), g.t())
                    if active:
                        torch.ops.aten.gelu_backward.grad_input(g, h, grad_input=g)
            if grad_x is not None:
                grad_x[:, part] = g
        return grad_x, None, None, *(one for pair in grads for one in pair)


def _empty(like: Tensor, shape: tuple[int, int], rows: bool) -> Tensor:
    return like.new_empty(shape[::-1]).t() if rows else like.new_empty(shape)
