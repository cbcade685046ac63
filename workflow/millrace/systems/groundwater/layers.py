"""Networks of linear layers on a CPU, worked on part by part.

Parts of the values stay in the cache from layer to layer, forward and backward.

Shape suffixes: R columns of values, I channels in, O channels out.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from millrace.models.native import are_plain
from millrace.models.products import product
from millrace.systems.groundwater import kernels

CACHED_BYTES = 1 << 21
"""Of a part of the widest values; smaller parts cost more calls than the nearer cache saves."""


def parts(count: int, nbytes: int) -> Iterator[slice]:
    """Parts of so many rows or columns, of so many bytes each, which the cache holds."""
    step = max(1, CACHED_BYTES // max(1, nbytes))
    return (slice(begin, min(count, begin + step)) for begin in range(0, count, step))


def layers(x_IR: Tensor, activated: bool, rows: bool, parameters: Sequence[Tensor]) -> Tensor:
    """Linear layers with GELU between them, and before the first one if ``activated``, [O, R].

    ``parameters``: weight and bias of each layer. With ``rows`` or by kernels it is a view of [R, O].
    """
    if kernels.KERNELS.suit(*parameters) and are_plain(x_IR):
        made: Tensor = _KernelLayers.apply(x_IR.t().contiguous(), activated, *parameters)
        return made.t()
    made = _Layers.apply(x_IR, activated, rows, *parameters)
    return made


class _KernelLayers(torch.autograd.Function):
    """`layers` by kernels, from [R, I] to [R, O]; what is between is computed again."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, activated: bool, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x_RI, *parameters)
        ctx.activated = activated
        return kernels.Network(parameters).values(x_RI, activated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_RI, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        given = (x_RI, ctx.activated, gradients[0].contiguous(), wanted)
        grad_x, grads = kernels.Network(parameters).gradients(*given)
        return grad_x, None, *grads


class _Layers(torch.autograd.Function):
    """`layers` by PyTorch, which keeps what is given and the values before activations."""

    @staticmethod
    def forward(ctx: Any, x_IR: Tensor, activated: bool, rows: bool, *parameters: Tensor) -> Tensor:
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
        saved = ctx.saved_tensors  # which may be computed again, once
        count = len(saved) // (len(ctx.parts) + 1)
        weights, kept = saved[:count], iter(saved[count:])
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
