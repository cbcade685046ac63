"""Fourier layers in real arithmetic, on rows of channels.

A layer is that of the Fourier Neural Operator [1]_ as `neuralop.layers.fno_block.FNOBlocks` 2.0.0 has it,

    y = F^-1(R . F(x)) + b + W x,    between layers followed by GELU twice,

with the weights R of the kept modes. Few modes are kept, so that transforms are products with small
matrices, one axis after the other, on values that lie grid point by grid point: nothing is permuted between
axes or layers. Complex numbers are pairs of real ones, which every optimiser, number format and compiler
takes. State dicts hold the complex weights of the library, whose models and ours load each other's.

Shape suffixes: G grid points (X, Y, Z), K kept modes, B samples, C channels in, O channels out,
R = B C columns.

.. [1] Li et al. (2021), Fourier Neural Operator for Parametric Partial Differential Equations, ICLR,
   arXiv:2010.08895.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from millrace.models.native import are_plain
from millrace.models.products import add_product, is_eager
from millrace.models.stored import StoredParameter
from millrace.systems.groundwater import kernels
from millrace.systems.groundwater.layers import layers, parts
from millrace.systems.groundwater.neuraloperator import ChannelMLP, FNOBlocks, SpectralConv

Shape = tuple[int, int, int]
Matrices = Sequence[Tensor]
"""One for each of three axes: what maps values to modes, or modes to values."""


class Basis(NamedTuple):
    """Matrices to the kept modes of a grid and back."""

    forward: Matrices
    inverse: Matrices
    shape: Shape
    kept: Shape
    zero: int
    """Number of the mode that gives a constant, or -1."""


class FourierLayers(nn.Module):
    """The layers of a library's `FNOBlocks`, whose parameters and their names they take over."""

    def __init__(self, blocks: FNOBlocks) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_Spectral(conv) for conv in blocks.convs)
        self.fno_skips = blocks.fno_skips

    def basis(self, shape: Shape) -> Basis:
        """That of a grid of this shape. It takes complex numbers, which a compiler does not."""
        first: Any = self.convs[0]
        dtype = torch.promote_types(first.weight.tensor.dtype, torch.float32)
        return _basis(shape, first.kept, dtype, first.weight.tensor.device)

    def has_kernels(self) -> bool:
        """Whether fields are worked on by kernels, which take memory of one sample after the other."""
        first: Any = self.convs[0]
        return kernels.KERNELS.suit(first.weight.tensor, channels=math.gcd(*first.channels))

    def forward(self, x_GBC: Tensor, basis: Basis) -> Tensor:
        """Apply all layers to fields on the grid of a basis, [G, B, O]."""
        with torch.autocast(x_GBC.device.type, enabled=False):
            # Sums over the grid are not rounded to half precision.
            h = x_GBC.float() if x_GBC.dtype in (torch.float16, torch.bfloat16) else x_GBC
            has_kernels = self.has_kernels() and are_plain(h)
            h = h.transpose(0, 1).contiguous() if has_kernels else h
            for number, (conv, skip) in enumerate(zip(self.convs, self.fno_skips, strict=True)):
                last = number + 1 == len(self.convs)
                h = conv(h, skip.conv.weight.squeeze(2), basis, not last, has_kernels)
        return h.transpose(0, 1) if has_kernels else h


class ChannelLast(nn.Module):
    """A library's `ChannelMLP` of two layers on columns of values, channel by channel, or rows of them."""

    def __init__(self, mlp: ChannelMLP) -> None:
        super().__init__()
        self.fcs = mlp.fcs

    def forward(self, x_CR: Tensor, rows: bool = False) -> Tensor:
        """Map [C, R] to [O, R], or to [R, O] with ``rows``."""
        first, second = self.fcs
        if is_eager(x_CR):
            pairs = [(layer.weight.squeeze(2), layer.bias) for layer in self.fcs]
            y_OR = layers(x_CR, False, rows, [*chain.from_iterable(pairs)])
            return y_OR.t() if rows else y_OR
        h_HR = torch.addmm(first.bias[:, None], first.weight.squeeze(2), x_CR)
        h_HR = functional.gelu(h_HR)
        weight_OH = second.weight.squeeze(2)
        if rows:
            return torch.addmm(second.bias, h_HR.t(), weight_OH.t())
        return torch.addmm(second.bias[:, None], weight_OH, h_HR)


class _Spectral(nn.Module):
    """Spectral convolution with its bias, and the linear map beside it."""

    def __init__(self, conv: SpectralConv) -> None:
        super().__init__()
        # In this order stand the moments of an optimiser in checkpoints of the library's layers.
        self.bias = conv.bias
        self.weight = _Weight(conv)
        self.channels: tuple[int, int] = tuple(conv.weight.shape[:2])
        self.kept: Shape = tuple(conv.weight.shape[2:])

    def forward(
        self, x: Tensor, skip_OC: Tensor, basis: Basis, activated: bool, has_kernels: bool
    ) -> Tensor:
        """``x``: [G, B, C], or [B, G, C] for kernels."""
        parameters = (self.weight.tensor, self.bias.flatten(), skip_OC)
        if has_kernels:
            return _KernelLayer.apply(x, *parameters, basis, activated)
        x_GBC = x
        if torch.compiler.is_exporting():
            y = _traced_layer(x_GBC, *parameters, basis)
            return functional.gelu(functional.gelu(y)) if activated else y
        matrices = (*basis.forward, *basis.inverse)
        others = (basis.shape, basis.kept, basis.zero, activated)
        return _Layer.apply(x_GBC, *parameters, *matrices, *others)


class _Weight(StoredParameter):
    """Weights [K, C, 2 O] of all modes, real parts first; complex [C, O, *modes] in state dicts."""

    def __init__(self, conv: SpectralConv) -> None:
        super().__init__(real_weights(conv.weight.tensor.detach()))
        self._modes = tuple(conv.weight.tensor.shape[2:])

    def stored(self, value: Tensor) -> Tensor:
        """As the library has them."""
        return complex_weights(value, self._modes)

    def restored(self, value: Tensor) -> Tensor:
        """As they are used."""
        return real_weights(value)


def real_weights(complex_CO: Tensor) -> Tensor:
    """Weights, or moments of them, complex[C, O, X, Y, Z], as real ones, [K, C, 2 O]."""
    parts = torch.view_as_real(complex_CO)  # C, O, X, Y, Z, 2
    rows = parts.permute(2, 3, 4, 0, 5, 1)
    return rows.reshape(-1, complex_CO.shape[0], 2 * complex_CO.shape[1]).contiguous()


def complex_weights(real_KC: Tensor, modes: tuple[int, ...]) -> Tensor:
    """Undo `real_weights`."""
    parts = real_KC.reshape(*modes, real_KC.shape[1], 2, real_KC.shape[2] // 2)
    return torch.view_as_complex(parts.permute(3, 5, 0, 1, 2, 4).contiguous())


@lru_cache(maxsize=16)
def _transforms(shape: Shape, kept: Shape) -> tuple[kernels.Transform, kernels.Transform]:
    """To modes, and the transpose of from modes, as `_basis` has them."""
    frequencies = [f.tolist() for f in _frequencies(kept)]
    shifted = [[f - n % 2 for f in of] for n, of in zip(shape[:2], frequencies[:2], strict=True)]
    shares = [1 / math.prod(shape)] * kept[2]
    return (
        kernels.Transform(shape, frequencies, shares),
        kernels.Transform(
            shape, [*shifted, frequencies[2]], _conjugates(shape[2], kept[2]).tolist()
        ),
    )


def _frequencies(kept: Shape) -> list[Tensor]:
    """Those around zero, of the last axis from zero on, whose conjugates are implied."""
    return [*(torch.arange(k) - k // 2 for k in kept[:2]), torch.arange(kept[2])]


def _conjugates(points: int, kept: int) -> Tensor:
    """How many waves of real values each mode of the last axis stands for, float64[kept]."""
    twice = torch.full((kept,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if points % 2 == 0 and kept == points // 2 + 1:
        twice[-1] = 1
    return twice


@lru_cache(maxsize=16)
def _basis(shape: Shape, kept: Shape, dtype: torch.dtype, device: torch.device) -> Basis:
    """Matrices to the kept modes and back.

    Values come as rows (real parts) or pairs of rows (real, imaginary) of an axis, modes as pairs.
    """
    (nx, ny, nz), (kx, ky, kz) = shape, kept
    fx, fy, fz = _frequencies(kept)
    to_x, to_y, to_z = _waves(fx, nx), _waves(fy, ny), _waves(fz, nz)
    # The library shifts modes back with `fftshift`, which on odd grids moves them by one.
    from_x, from_y = (_waves(f - n % 2, n).conj().T for f, n in ((fx, nx), (fy, ny)))
    from_z = to_z.conj().T * _conjugates(nz, kz)
    total = nx * ny * nz
    first = torch.stack([to_x.real, to_x.imag], dim=1).reshape(2 * kx, nx) / total
    last = torch.stack([from_x.real, -from_x.imag], dim=2).reshape(nx, 2 * kx)
    forward = (first, _of_parts(to_y), _of_parts(to_z))
    inverse = (last, _to_parts(from_y), _to_parts(from_z))
    zero = -1 if nx % 2 or ny % 2 else ((kx // 2) * ky + ky // 2) * kz
    made = [[m.to(device, dtype).contiguous() for m in of] for of in (forward, inverse)]
    return Basis(made[0], made[1], shape, kept, zero)


def _waves(frequency_K: Tensor, points: int) -> Tensor:
    """exp(-2 pi i k n / points), complex128[K, points]."""
    turns = torch.outer(frequency_K.double(), torch.arange(points).double()) / points
    return torch.polar(torch.ones_like(turns), -2 * math.pi * turns)


def _of_parts(matrix_KN: Tensor) -> Tensor:
    """A complex matrix on pairs (part, n), which gives pairs (k, part): [2 K, 2 N]."""
    re, im = matrix_KN.real, matrix_KN.imag
    rows = torch.stack([torch.stack([re, -im], dim=1), torch.stack([im, re], dim=1)], dim=1)
    return rows.reshape(2 * len(matrix_KN), -1)  # k, part out, part in, n


def _to_parts(matrix_NK: Tensor) -> Tensor:
    """A complex matrix on pairs (k, part), which gives pairs (part, n): [2 N, 2 K]."""
    re, im = matrix_NK.real, matrix_NK.imag
    rows = torch.stack([torch.stack([re, -im], dim=2), torch.stack([im, re], dim=2)], dim=0)
    return rows.reshape(2 * len(matrix_NK), -1)  # part out, n, k, part in


def _along(matrix: Tensor, x_NIR: Tensor) -> Tensor:
    """Product with each of N blocks of rows."""
    return torch.bmm(matrix.expand(len(x_NIR), -1, -1), x_NIR)


def _to_modes(x_GR: Tensor, matrices: Matrices, shape: Shape) -> Tensor:
    """Parts of modes, [2 K, R] in pairs, from values, one axis after the other."""
    (nx, ny, nz), (first, second, third) = shape, matrices
    kx, ky = len(first) // 2, len(second) // 2
    h = torch.mm(first, x_GR.view(nx, -1)).view(kx, 2 * ny, -1)
    h = _along(second, h).view(kx * ky, 2 * nz, -1)
    return _along(third, h).view(kx * ky * len(third), -1)


def _to_values(z_2KR: Tensor, matrices: Matrices, kept: Shape) -> Tensor:
    """Values [G, R] from parts of modes."""
    (kx, ky, kz), (first, second, third) = kept, matrices
    columns = z_2KR.shape[1]
    h = _along(third, z_2KR.view(kx * ky, 2 * kz, columns)).view(kx, 2 * ky, -1)
    h = _along(second, h).view(2 * kx, -1)
    return torch.mm(first, h).view(-1, columns)


class _Layer(torch.autograd.Function):
    """A Fourier layer, which keeps the modes of its input and what it gives before activation."""

    @staticmethod
    def forward(
        ctx: Any,
        x_GBC: Tensor,
        weight_KC: Tensor,
        bias_O: Tensor,
        skip_OC: Tensor,
        *given: Any,
    ) -> Tensor:
        *matrices, shape, kept, zero, activated = given
        points, samples, channels = x_GBC.shape
        n_modes, n_out = len(weight_KC), len(skip_OC)
        x_GBC = x_GBC.flatten(0, 1).contiguous().view_as(x_GBC)
        x = x_GBC.view(points, samples * channels)
        z = _to_modes(x, matrices[:3], shape).view(n_modes, 2 * samples, channels)
        product = torch.bmm(z, weight_KC).view(n_modes, 2, samples, 2, n_out)
        modes = _complex_sum(product)
        if zero >= 0:
            modes[zero, 0] += bias_O
        columns = modes.view(2 * n_modes, samples * n_out)
        y = _to_values(columns, matrices[3:], kept).view(points * samples, n_out)
        rows = x.view(-1, channels)
        once, out = (torch.empty_like(y), torch.empty_like(y)) if activated else (None, y)
        for part in _parts(y):
            add_product(y[part], rows[part], skip_OC)
            if zero < 0:
                y[part] += bias_O
            if once is not None:
                torch.ops.aten.gelu.out(y[part], out=once[part])
                torch.ops.aten.gelu.out(once[part], out=out[part])
        kept_y = y if activated else None
        ctx.save_for_backward(x_GBC, z, weight_KC, skip_OC, *matrices, kept_y, once)
        ctx.shapes = shape, kept, zero
        return out.view(points, samples, n_out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_GBC, z, weight_KC, skip_OC, *matrices, y, once = ctx.saved_tensors
        shape, kept, zero = ctx.shapes
        points, samples, channels = x_GBC.shape
        n_modes, n_out = len(weight_KC), len(skip_OC)
        g = gradients[0].flatten(0, 1).contiguous()
        rows = x_GBC.view(points * samples, channels)
        given, grad_skip = g, torch.zeros_like(skip_OC)
        if once is not None:
            g = torch.empty_like(given)
        for part in _parts(g):
            if once is not None:
                between = torch.ops.aten.gelu_backward(given[part], once[part])
                torch.ops.aten.gelu_backward.grad_input(between, y[part], grad_input=g[part])
            add_product(grad_skip, g[part].t(), rows[part].t())
        forward, inverse = ([m.t() for m in of] for of in (matrices[:3], matrices[3:]))
        modes = _to_modes(g.view(points, samples * n_out), inverse, shape)
        modes = modes.view(n_modes, 2, samples, n_out)
        grad_bias = modes[zero, 0].sum(0) if zero >= 0 else g.sum(0)
        product = _complex_sum_backward(modes).view(n_modes, 2 * samples, 2 * n_out)
        grad_weight = torch.bmm(z.transpose(1, 2), product)
        grad_z = torch.bmm(product, weight_KC.transpose(1, 2))
        columns = grad_z.view(2 * n_modes, samples * channels)
        grad_x = _to_values(columns, forward, kept).view(points * samples, channels)
        for part in _parts(grad_x):
            add_product(grad_x[part], g[part], skip_OC.t())
        others = (None,) * (len(matrices) + 4)
        return grad_x.view(x_GBC.shape), grad_weight, grad_bias, grad_skip, *others


class _KernelLayer(torch.autograd.Function):
    """`_Layer` by kernels, sample by sample, which keeps no more than modes and what is activated."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BGC: Tensor,
        weight_KC: Tensor,
        bias_O: Tensor,
        skip_OC: Tensor,
        basis: Basis,
        activated: bool,
    ) -> Tensor:
        ctx.basis, zero = basis, basis.zero
        forward, inverse = _transforms(basis.shape, basis.kept)
        z = forward.to_modes(x_BGC)
        modes = kernels.mix(z, weight_KC)
        if zero >= 0:
            modes[zero, 0] += bias_O
        added = bias_O if zero < 0 else None
        y, out = inverse.to_values(modes, x_BGC, skip_OC.t().contiguous(), added, activated)
        ctx.save_for_backward(x_BGC, z, weight_KC, skip_OC, y if activated else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BGC, z, weight_KC, skip_OC, y = ctx.saved_tensors
        zero = ctx.basis.zero
        forward, inverse = _transforms(ctx.basis.shape, ctx.basis.kept)
        given = gradients[0].contiguous()
        g, modes, grad_skip = inverse.gradient_to_modes(given, y, x_BGC)
        grad_bias = modes[zero, 0].sum(0) if zero >= 0 else g.sum((0, 1))
        grad_z, grad_weight = kernels.mix_gradients(z, weight_KC, modes)
        grad_x, _ = forward.to_values(grad_z, g, skip_OC)
        return grad_x, grad_weight, grad_bias, grad_skip, None, None


def _traced_layer(
    x_GBC: Tensor,
    weight_KC: Tensor,
    bias_O: Tensor,
    skip_OC: Tensor,
    basis: Basis,
) -> Tensor:
    """`_Layer` before activation in operations that exported programs hold, of any number of samples."""
    points, samples, channels = x_GBC.shape
    n_modes, n_out = weight_KC.shape[0], skip_OC.shape[0]
    z = _to_modes(x_GBC.reshape(points, samples * channels), basis.forward, basis.shape)
    product = torch.bmm(z.view(n_modes, 2 * samples, channels), weight_KC)
    modes = _complex_sum(product.view(n_modes, 2, samples, 2, n_out))
    y = _to_values(modes.view(2 * n_modes, samples * n_out), basis.inverse, basis.kept)
    # The mode of frequency zero alone is a constant: the bias is added to values all the same.
    return y.view(points, samples, n_out) + functional.linear(x_GBC, skip_OC, bias_O)


def _parts(rows: Tensor) -> list[slice]:
    """`parts` on a CPU; all at once on a GPU, and where a compiler divides the work."""
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(len(rows))]
    return [*parts(len(rows), rows[:1].nbytes)]


def _complex_sum(product_K2B2O: Tensor) -> Tensor:
    """Parts of the product of complex numbers from all products of their parts, [K, 2, B, O]."""
    re, im = product_K2B2O.unbind(1)
    if torch.compiler.is_compiling():  # which does not write to a part of a tensor
        return torch.stack([re[:, :, 0] - im[:, :, 1], re[:, :, 1] + im[:, :, 0]], dim=1)
    made = re.new_empty(len(re), 2, re.shape[1], re.shape[3])
    torch.sub(re[:, :, 0], im[:, :, 1], out=made[:, 0])
    torch.add(re[:, :, 1], im[:, :, 0], out=made[:, 1])
    return made


def _complex_sum_backward(g_K2BO: Tensor) -> Tensor:
    """Gradient of the products of parts, [K, 2, B, 2, O]."""
    re, im = g_K2BO.unbind(1)
    return torch.stack([torch.stack([re, im], dim=2), torch.stack([im, -re], dim=2)], dim=1)
