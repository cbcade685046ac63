"""What `kernels.c` computes, as functions of tensors that `KERNELS.suit` takes.

Shape suffixes: G grid points, K kept modes, B samples, C channels in, O channels out, R = B C columns,
N points integrated over, M output points, E edges.
"""

import ctypes
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from millrace.models.native import Kernels, expect, pointer

KERNELS = Kernels(Path(__file__).with_name("kernels.c"))


class Network:
    """Linear layers with GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415) between them, on rows of values.

    Takes weights [O, I] and biases in turns.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        pairs = zip(parameters[::2], parameters[1::2], strict=True)
        self._layers = [_Layer.of(weight, bias) for weight, bias in pairs]
        for (_, out), (into, _) in pairwise(layer.channels for layer in self._layers):
            if out != into:
                raise ValueError(f"a layer of {into} channels after one that gives {out}")
        self._table = (_LayerTable * len(self._layers))(*(layer.table() for layer in self._layers))

    def values(self, x_RI: Tensor, activated: bool) -> Tensor:
        """Of the last layer, [R, O]; with ``activated`` GELU stands before the first layer, too."""
        expect(x_RI, None, self._layers[0].channels[0])
        out = x_RI.new_empty(len(x_RI), self._layers[-1].channels[1])
        KERNELS.call(
            "network", self._table, len(self._layers), x_RI, int(activated), out, len(x_RI)
        )
        return out

    def gradients(
        self, x_RI: Tensor, activated: bool, g_RO: Tensor, wanted: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Of x if it is ``wanted``, and of weights and biases in turns."""
        expect(x_RI, None, self._layers[0].channels[0])
        expect(g_RO, len(x_RI), self._layers[-1].channels[1])
        given = (self._table, len(self._layers))
        sizes = [(layer.channels[0] + 1, layer.forward.shape[1]) for layer in self._layers]
        flat = x_RI.new_empty(sum(rows * columns for rows, columns in sizes))
        grad_x = torch.empty_like(x_RI) if wanted else None
        KERNELS.call(
            "network_gradients", *given, x_RI, int(activated), g_RO, grad_x, flat, len(x_RI)
        )
        made = []
        for layer, size, part in zip(
            self._layers,
            sizes,
            flat.split([rows * columns for rows, columns in sizes]),
            strict=True,
        ):
            table = part.view(size)[:, : layer.channels[1]]
            made += [table[:-1].t().contiguous(), table[-1].contiguous()]
        return grad_x, made


class Transform:
    """To modes [K, 2, B, C] from values [B, G, C] on a grid of three axes, and its transpose.

    A mode is the sum of values times exp(-2 pi i f n / N) along each axis; its real part stands before its
    imaginary one. Values are real; the last axis has frequencies from zero on, and factors of its modes.
    """

    def __init__(
        self, shape: Sequence[int], frequencies: Sequence[Sequence[int]], factors: Sequence[float]
    ) -> None:
        self._modes, self._points = math.prod(map(len, frequencies)), math.prod(shape)
        of_axes = [None, None, factors]
        tables = [*map(_tables, shape, frequencies, of_axes)]
        self._kept = [tensor for table in tables for tensor in table if isinstance(tensor, Tensor)]
        self._axes = [_Axis(*map(_field, table)) for table in tables]

    def to_modes(self, x_BGC: Tensor) -> Tensor:
        """Modes of values."""
        samples, _, channels = x_BGC.shape
        expect(x_BGC, None, self._points, None)
        out = x_BGC.new_empty(self._modes, 2, samples, channels)
        KERNELS.call("to_modes", *self._axes, x_BGC, *[None] * 3, 0, None, out, samples, channels)
        return out

    def gradient_to_modes(
        self, g_BGC: Tensor, before_BGC: Tensor | None, beside_BGD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `to_values` turns gradients into: those of its sum, of its modes, and of its weight [C, D].

        ``before``: the sum, if it was activated.
        """
        samples, _, channels = g_BGC.shape
        out = g_BGC.new_empty(self._modes, 2, samples, channels)
        inner = g_BGC if before_BGC is None else torch.empty_like(g_BGC)
        weights = g_BGC.new_zeros(samples, channels, beside_BGD.shape[2])
        given = (g_BGC, before_BGC, inner, beside_BGD, beside_BGD.shape[2], weights, out)
        KERNELS.call("to_modes", *self._axes, *given, samples, channels)
        return inner, out, weights.sum(0)

    def to_values(
        self,
        z_K2BC: Tensor,
        beside_BGD: Tensor,
        weight_DC: Tensor,
        bias_C: Tensor | None = None,
        activated: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The transpose of `to_modes`, plus ``beside`` times a weight, plus a bias; and GELU of it, twice.

        Without ``activated`` the second is the first.
        """
        samples, channels = z_K2BC.shape[2:]
        expect(beside_BGD, samples, self._points, len(weight_DC))
        expect(weight_DC, None, channels)
        out = z_K2BC.new_empty(samples, self._points, channels)
        made = torch.empty_like(out) if activated else out
        beside = (beside_BGD, weight_DC, len(weight_DC), bias_C)
        last = made if activated else None
        KERNELS.call("to_values", *self._axes, z_K2BC, *beside, out, last, samples, channels)
        return out, made


def mix(z_K2BC: Tensor, weight_KC: Tensor) -> Tensor:
    """Complex products of modes with weights [K, C, 2 O], real parts first: [K, 2, B, O]."""
    count, _, samples, channels = z_K2BC.shape
    expect(weight_KC, count, channels, None)
    out = z_K2BC.new_empty(count, 2, samples, weight_KC.shape[2] // 2)
    KERNELS.call("mix", z_K2BC, weight_KC, out, count, samples, channels, out.shape[3])
    return out


def mix_gradients(z_K2BC: Tensor, weight_KC: Tensor, g_K2BO: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of modes and weights of `mix`."""
    sizes = (len(z_K2BC), *z_K2BC.shape[2:], g_K2BO.shape[3])
    grad_z, grad_weight = torch.empty_like(z_K2BC), torch.empty_like(weight_KC)
    KERNELS.call("mix_gradient", g_K2BO, weight_KC, grad_z, *sizes)
    KERNELS.call("mix_weight_gradient", z_K2BC, g_K2BO, grad_weight, *sizes)
    return grad_z, grad_weight


def neighbour_sums(
    weight_EC: Tensor, f_BNC: Tensor, indptr: Tensor, index: Tensor, order: Tensor
) -> Tensor:
    """Sums over e in indptr[m]:indptr[m+1] of weight[e, c] f[b, index[e], c], [B, M, C].

    Output points m are worked on in an order.
    """
    samples, points, channels = f_BNC.shape
    expect(weight_EC, len(index), channels)
    out = f_BNC.new_empty(samples, len(order), channels)
    sizes = (samples, points, len(order), channels)
    KERNELS.call("neighbour_sums", weight_EC, index, indptr, order, f_BNC, out, *sizes)
    return out


def neighbour_gradients(
    weight_EC: Tensor,
    f_BNC: Tensor,
    g_BMC: Tensor,
    indptr: Tensor,
    index: Tensor,
    order: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weights and f of `neighbour_sums` that are wanted."""
    samples, points, channels = f_BNC.shape
    where, sizes = (index, indptr, order), (samples, points, len(order), channels)
    grad_weight = grad_f = None
    if wanted[0]:
        grad_weight = (torch.empty_like if samples else torch.zeros_like)(weight_EC)
        KERNELS.call("neighbour_products", *where, f_BNC, g_BMC, grad_weight, *sizes)
    if wanted[1]:
        grad_f = torch.zeros_like(f_BNC)
        KERNELS.call("neighbour_spread", weight_EC, *where, g_BMC, grad_f, *sizes)
    return grad_weight, grad_f


class _LayerTable(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("into", "out", "in_wide", "out_wide")),
        *((name, ctypes.c_void_p) for name in ("forward", "backward", "bias")),
    ]


class _Layer(NamedTuple):
    """A layer as kernels read it: with zeros up to the next multiple of a vector."""

    channels: tuple[int, int]
    forward: Tensor
    backward: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight_OI: Tensor, bias_O: Tensor) -> "_Layer":
        out, into = weight_OI.shape
        expect(bias_O, out)
        return cls((into, out), _wide(weight_OI.t()), _wide(weight_OI), _wide(bias_O))

    def table(self) -> _LayerTable:
        sizes = (*self.channels, self.backward.shape[1], self.forward.shape[1])
        return _LayerTable(*sizes, *map(pointer, (self.forward, self.backward, self.bias)))


def _wide(x: Tensor) -> Tensor:
    return functional.pad(x, (0, -x.shape[-1] % KERNELS.vector())).contiguous()


class _Axis(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("points", "kept", "waves", "still")),
        *((name, ctypes.c_void_p) for name in ("plus", "minus", "cosines", "sines")),
        *((name, ctypes.c_void_p) for name in ("cosines_t", "sines_t")),
    ]


def _tables(
    points: int, frequencies: Sequence[int], factors: Sequence[float] | None
) -> list[int | Tensor]:
    """Fields of an `_Axis`: waves of unlike absolute frequency, and which modes they are in."""
    waves = sorted({abs(f) for f in frequencies})
    still = int(waves[0] == 0)
    where = {f: number for number, f in enumerate(frequencies)}
    signs = [[where.get(sign * f, -1) for f in waves] for sign in (1, -1)]
    if still:
        signs[1][0] = -1
    turns = 2 * math.pi / points * torch.tensor(waves, dtype=torch.float64)
    angles = turns[:, None] * torch.arange(points // 2 + 1)
    cosines, sines = angles.cos(), angles.sin()
    if factors is not None:  # sums of real values with sines are imaginary parts, but for the sign
        factor = torch.tensor(factors, dtype=torch.float64)[:, None]
        cosines, sines = cosines * factor, -sines * factor
    sines = sines[still:, 1 : (points + 1) // 2]
    both = [m.float().contiguous() for m in (cosines, sines, cosines.t(), sines.t())]
    numbers = [torch.tensor(numbers, dtype=torch.int32) for numbers in signs]
    return [points, len(frequencies), len(waves), still, *numbers, *both]


def _field(value: int | Tensor) -> int | None:
    return pointer(value) if isinstance(value, Tensor) else value
