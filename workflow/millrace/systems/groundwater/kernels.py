"""What `kernels.c` computes, as functions of tensors; `suit` says whether it takes them.

Shape suffixes: G grid points, K kept modes, B samples, C channels in, O channels out, R = B C columns,
N points integrated over, M output points, E edges.
"""

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from millrace.models import native

_SOURCE = Path(__file__).with_name("kernels.c")


def suit(*tensors: Tensor, channels: int = 0) -> bool:
    """Whether kernels take these tensors, in rows of so many channels."""
    if not native.suit(*tensors):
        return False
    library = native.library(_SOURCE)
    return library is not None and channels % library.vector() == 0


def gelu(x: Tensor, gradient: Tensor | None = None) -> Tensor:
    """GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415) by the integral of the normal distribution.

    If the gradient of its output is given, it becomes that of its input.
    """
    out = torch.empty_like(x)
    _call("gelu", x, out, gradient, x.numel())
    return out


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
        self._axes = [ctypes.byref(_Axis(*map(_number, table))) for table in tables]

    def to_modes(self, x_BGC: Tensor) -> Tensor:
        """Modes of values."""
        samples, _, channels = x_BGC.shape
        out = x_BGC.new_empty(self._modes, 2, samples, channels)
        _call("to_modes", *self._axes, x_BGC, None, None, out, samples, channels)
        return out

    def gradient_to_modes(self, g_BGC: Tensor, before_BGC: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of what was given to GELU twice, of that of what it made, and its modes."""
        samples, _, channels = g_BGC.shape
        out, inner = g_BGC.new_empty(self._modes, 2, samples, channels), torch.empty_like(g_BGC)
        _call("to_modes", *self._axes, g_BGC, before_BGC, inner, out, samples, channels)
        return inner, out

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
        out = z_K2BC.new_empty(samples, self._points, channels)
        made = torch.empty_like(out) if activated else out
        beside = (beside_BGD, weight_DC, len(weight_DC), bias_C)
        last = made if activated else None
        _call("to_values", *self._axes, z_K2BC, *beside, out, last, samples, channels)
        return out, made


def mix(z_K2BC: Tensor, weight_KC: Tensor) -> Tensor:
    """Complex products of modes with weights [K, C, 2 O], real parts first: [K, 2, B, O]."""
    count, _, samples, channels = z_K2BC.shape
    out = z_K2BC.new_empty(count, 2, samples, weight_KC.shape[2] // 2)
    _call("mix", z_K2BC, weight_KC, out, count, samples, channels, out.shape[3])
    return out


def mix_gradients(z_K2BC: Tensor, weight_KC: Tensor, g_K2BO: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of modes and weights of `mix`."""
    sizes = (len(z_K2BC), *z_K2BC.shape[2:], g_K2BO.shape[3])
    grad_z, grad_weight = torch.empty_like(z_K2BC), torch.empty_like(weight_KC)
    _call("mix_gradient", g_K2BO, weight_KC, grad_z, *sizes)
    _call("mix_weight_gradient", z_K2BC, g_K2BO, grad_weight, *sizes)
    return grad_z, grad_weight


def bag_sums(
    weight_EC: Tensor, f_BNC: Tensor, indptr: Tensor, index: Tensor, edge: Tensor | None = None
) -> Tensor:
    """Sums over e in indptr[m]:indptr[m+1] of weight[edge[e], c] f[b, index[e], c], [B, M, C]."""
    samples, points, channels = f_BNC.shape
    out = f_BNC.new_empty(samples, len(indptr) - 1, channels)
    sizes = (samples, points, out.shape[1], channels)
    _call("bag_sums", weight_EC, edge, index, indptr, f_BNC, out, *sizes)
    return out


def bag_products(g_BMC: Tensor, f_BNC: Tensor, indptr: Tensor, index: Tensor) -> Tensor:
    """Sums over b of g[b, m, c] f[b, index[e], c] for e in indptr[m]:indptr[m+1], [E, C]."""
    samples, points, channels = f_BNC.shape
    out = f_BNC.new_empty(len(index), channels)
    sizes = (samples, points, g_BMC.shape[1], channels)
    _call("bag_products", g_BMC, index, indptr, f_BNC, out, *sizes)
    return out


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


def _number(value: int | Tensor) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_long(value) if isinstance(value, int) else value


def _call(name: str, *given: Any) -> None:
    function = getattr(native.library(_SOURCE), name)
    function(*map(_plain, given), torch.get_num_threads())
