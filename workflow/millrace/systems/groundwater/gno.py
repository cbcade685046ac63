"""Graph neural operator: kernel integrals over fixed neighbour tables.

The layer is the ``linear`` transform of the Graph Neural Operator [1]_,

    u(x_m) = sum_{n in N(m)} k(x_m, y_n) * f(y_n)     (optionally divided by |N(m)|),

with the kernel k an MLP of the two embedded positions. Parameters are those of
`neuralop.layers.gno_block.GNOBlock`; only the evaluation differs. What depends on the geometry
alone (neighbours, embeddings) is computed once, samples share the kernel of their geometry, and sums are
those of bags of rows of samples, one a channel, or by kernels in C: nothing has edges, samples and
channels at once.

Shape suffixes: N points integrated over, M output points, E edges, B samples, C channels,
D embedding channels, H kernel width.

.. [1] Li et al. (2020), Neural Operator: Graph Kernel Network for Partial Differential Equations,
   arXiv:2003.03485.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from millrace.data.device import to_device
from millrace.models.native import are_plain
from millrace.models.products import is_eager
from millrace.systems.groundwater import kernels
from millrace.systems.groundwater.graph import CSR
from millrace.systems.groundwater.layers import layers
from millrace.systems.groundwater.neuraloperator import GNOBlock, LinearChannelMLP

# It is made anew in each backward pass.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)

_HAS_MKL = torch.backends.mkl.is_available()
BAG_BYTES = 50_000_000
"""Bags of a table of neighbours; of many edges channels are taken in turns."""


@dataclass(frozen=True, eq=False)
class NeighbourTable:
    """Neighbours of M output points among N points, as a CSR table and its transpose.

    The transpose makes the backward pass a sum over bags too, so that gradients are deterministic: no
    atomic additions.
    """

    indptr: Tensor
    """int64[M+1]: edges of output point m are ``indptr[m]:indptr[m+1]``."""
    index: Tensor
    """int64[E]: the neighbour of each edge."""
    row: Tensor
    """int64[E]: the output point of each edge."""
    transposed_indptr: Tensor
    """int64[N+1]"""
    transposed_edge: Tensor
    """int64[E]: edges sorted by neighbour."""
    order: Tensor
    """int64[M]: output points sorted by a neighbour, so that those with the same ones follow each other."""

    @classmethod
    def from_csr(cls, csr: CSR, n_points: int) -> "NeighbourTable":
        """Build the table of ``csr``, whose neighbours are drawn from ``n_points`` points."""
        return cls.of(torch.from_numpy(csr.indptr), torch.from_numpy(csr.index), n_points)

    @classmethod
    def of(cls, indptr: Tensor, index: Tensor, n_points: int) -> "NeighbourTable":
        """Build the table of tensors, see `from_csr`."""
        if torch.compiler.is_exporting():  # of any mesh, without gradients: no transpose
            edge = torch.arange(index.shape[0], device=index.device)
            row = torch.bucketize(edge, indptr[1:], right=True)
            return cls(indptr, index, row, indptr, index, indptr)
        rows = torch.arange(len(indptr) - 1, device=index.device)
        row = torch.repeat_interleave(rows, indptr.diff())
        counts = torch.bincount(index, minlength=n_points)
        transposed_indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        middle = (indptr[:-1] + indptr[1:]).div(2, rounding_mode="floor")
        padded = torch.cat([index, index.new_zeros(1)])  # no point may have any
        order = torch.argsort(padded[middle], stable=True)
        transposed_edge = torch.argsort(index, stable=True)
        return cls(indptr, index, row, transposed_indptr, transposed_edge, order)

    def to(self, device: torch.device) -> "NeighbourTable":
        """Copy to a device."""
        return NeighbourTable(
            *(to_device(getattr(self, name), device) for name in self.__annotations__)
        )

    def bags(self, channels: int) -> "_Bags":
        """Bags of so many channels, or as many of them as are taken at once."""
        rows = len(self.indptr) + len(self.transposed_indptr) + 3 * len(self.index)
        most = max(1, min(BAG_BYTES // 4, 2**31 - 1) // rows)
        # A compiler would know neither the smaller number nor what is cached.
        make = _Bags.of if torch.compiler.is_compiling() else _bags
        return make(self, channels if channels <= most else most)


KernelSum = Callable[[Tensor, Tensor, NeighbourTable], Tensor]
"""(kernel [E, C], function [N, B, C], table) -> sums, [M, B, C]."""


@dataclass(frozen=True, eq=False)
class _Bags:
    """Which rows are summed, of values [C N, B] by output point and [C M, B] by neighbour."""

    channels: int
    index: Tensor
    offset: Tensor
    back_index: Tensor
    back_offset: Tensor
    bag: Tensor
    back_edge: Tensor
    """int64[E]: edges sorted by neighbour."""

    @classmethod
    def of(cls, table: NeighbourTable, channels: int) -> "_Bags":
        edges, rows = len(table.index), len(table.indptr) - 1
        points = len(table.transposed_indptr) - 1
        channel = torch.arange(channels, device=table.index.device)[:, None]

        def stacked(values: Tensor, step: int) -> Tensor:
            return (values + channel * step).flatten().int()

        by_neighbour = table.row[table.transposed_edge]
        return cls(
            channels,
            stacked(table.index, points),
            stacked(table.indptr[:-1], edges),
            stacked(by_neighbour, rows),
            stacked(table.transposed_indptr[:-1], edges),
            stacked(table.row, rows),
            table.transposed_edge,
        )

    def products(self, g: Tensor, f: Tensor) -> Tensor:
        """Inner products of each bag's row of ``g`` with its rows of ``f``."""
        if not (_HAS_MKL and is_eager(g)):
            return torch.ops.aten._embedding_bag_per_sample_weights_backward(
                g, f, self.index, self.offset, self.bag, 0
            )
        # As products of dense matrices at the places of a sparse one: vectorised, unlike the former.
        end = self.offset.new_full((1,), len(self.index))
        rows = torch.cat([self.offset, end])
        zeros, size = g.new_zeros(len(self.index)), (len(g), len(f))
        places = torch.sparse_csr_tensor(rows, self.index, zeros, size, check_invariants=False)
        return torch.sparse.sampled_addmm(places, g, f.t(), beta=0).values()


@lru_cache(maxsize=32)
def _bags(table: NeighbourTable, channels: int) -> _Bags:
    """Bags that were used last: those of all geometries would fill a GPU."""
    return _Bags.of(table, channels)


class _KernelSum(torch.autograd.Function):
    """out[c,m,b] = sum_{e in row m} kernel[c,e] f[c,index[e],b], without tensors of edges and samples."""

    @staticmethod
    def forward(ctx: Any, kernel_CE: Tensor, f_CNB: Tensor, bags: _Bags) -> Tensor:
        ctx.save_for_backward(kernel_CE, f_CNB)
        ctx.bags = bags
        return _sum_of_bags(f_CNB, bags.index, bags.offset, kernel_CE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kernel_CE, f_CNB = ctx.saved_tensors
        bags: _Bags = ctx.bags
        g_CMB = gradients[0].contiguous()
        grad_kernel = grad_f = None
        if ctx.needs_input_grad[0]:
            grad_kernel = bags.products(g_CMB.flatten(0, 1), f_CNB.flatten(0, 1)).view_as(kernel_CE)
        if ctx.needs_input_grad[1]:
            weight = kernel_CE.index_select(1, bags.back_edge)
            grad_f = _sum_of_bags(g_CMB, bags.back_index, bags.back_offset, weight)
        return grad_kernel, grad_f, None


class _KernelSumOfSamples(torch.autograd.Function):
    """out[b,m,c] = sum_{e in row m} kernel[e,c] f[b,index[e],c], by kernels."""

    @staticmethod
    def forward(ctx: Any, kernel_EC: Tensor, f_BNC: Tensor, table: NeighbourTable) -> Tensor:
        ctx.save_for_backward(kernel_EC, f_BNC)
        ctx.table = table
        return kernels.neighbour_sums(kernel_EC, f_BNC, table.indptr, table.index, table.order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kernel_EC, f_BNC = ctx.saved_tensors
        table: NeighbourTable = ctx.table
        where = (table.indptr, table.index, table.order)
        given = (kernel_EC, f_BNC, gradients[0].contiguous())
        return *kernels.neighbour_gradients(*given, *where, ctx.needs_input_grad[:2]), None


def _sum_of_bags(values_CNB: Tensor, index: Tensor, offset: Tensor, weight_CE: Tensor) -> Tensor:
    channels, samples = values_CNB.shape[0], values_CNB.shape[2]
    summed = functional.embedding_bag(
        index,
        values_CNB.reshape(-1, samples),
        offset,
        mode="sum",
        per_sample_weights=weight_CE.reshape(-1),
    )
    return summed.view(channels, -1, samples)


class _Gathered(torch.autograd.Function):
    """y[index] + x[row], whose gradients are sums over bags."""

    @staticmethod
    def forward(ctx: Any, y_NH: Tensor, x_MH: Tensor, table: NeighbourTable) -> Tensor:
        ctx.table = table
        return y_NH.index_select(0, table.index).add_(x_MH.index_select(0, table.row))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        table: NeighbourTable = ctx.table
        g_EH = gradients[0].contiguous()
        edges = torch.arange(len(g_EH), device=g_EH.device)
        by_neighbour = (table.transposed_edge, table.transposed_indptr)
        grad_y, grad_x = (
            functional.embedding_bag(order, g_EH, indptr[:-1], mode="sum")
            for order, indptr in (by_neighbour, (edges, table.indptr))
        )
        return grad_y, grad_x, None


def kernel_sum(kernel_CE: Tensor, f_CNB: Tensor, table: NeighbourTable) -> Tensor:
    """Sum kernel times function over the neighbours of every output point, [C, M, B].

    The kernel of an edge is shared by all samples.
    """
    if kernel_CE.dtype in (torch.float16, torch.bfloat16):
        # Under autocast: hundreds of neighbours are not summed in half precision.
        kernel_CE = kernel_CE.float()
    if kernels.KERNELS.suit(kernel_CE.t(), channels=len(kernel_CE)) and are_plain(f_CNB):
        if f_CNB.shape[1] != len(table.transposed_indptr) - 1:
            raise ValueError(f"neighbours of other than the {f_CNB.shape[1]} points of a function")
        f_BNC = f_CNB.permute(2, 1, 0).contiguous()
        return _KernelSumOfSamples.apply(kernel_CE.t(), f_BNC, table).permute(2, 1, 0)
    # As a matrix, whose transpose is copied twice as fast as one in three dimensions.
    f_CNB = f_CNB.to(kernel_CE.dtype).flatten(1).contiguous().view_as(f_CNB)
    if torch.compiler.is_exporting():  # of any mesh and number of samples, without gradients
        channel = torch.arange(f_CNB.shape[0], device=f_CNB.device)[:, None]
        index = (table.index + channel * f_CNB.shape[1]).flatten()
        offset = (table.indptr[:-1] + channel * table.index.shape[0]).flatten()
        return _sum_of_bags(f_CNB, index, offset, kernel_CE)
    if not len(table.index):
        return f_CNB.new_zeros(len(f_CNB), len(table.indptr) - 1, f_CNB.shape[2])
    at_once = table.bags(len(f_CNB)).channels
    pairs = zip(kernel_CE.split(at_once), f_CNB.split(at_once), strict=True)
    parts = [_KernelSum.apply(k, f, table.bags(len(k))) for k, f in pairs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _edge_kernel(
    mlp: LinearChannelMLP, y_ND: Tensor, x_MD: Tensor, table: NeighbourTable
) -> Tensor:
    """Evaluate the kernel MLP on every edge, [C, E].

    Its first layer acts on the concatenation [y, x]; being linear it is applied to the points before
    they are gathered to edges, which saves the [E, 2 D] tensor.
    """
    first, *others = mlp.fcs
    weight_y, weight_x = first.weight.split(y_ND.shape[1], dim=1)
    y_NH = functional.linear(y_ND, weight_y)
    hidden = _Gathered.apply(y_NH, functional.linear(x_MD, weight_x, first.bias), table)
    if not others:
        return hidden.t()
    if is_eager(hidden):
        pairs = [(layer.weight, layer.bias) for layer in others]
        return layers(hidden.t(), True, False, [*chain.from_iterable(pairs)])
    for layer in others[:-1]:
        hidden = layer(mlp.non_linearity(hidden))
    last = others[-1]
    return torch.addmm(last.bias[:, None], last.weight, mlp.non_linearity(hidden).t())


def gno(
    block: GNOBlock,
    y_ND: Tensor,
    x_MD: Tensor,
    f_CNB: Tensor,
    table: NeighbourTable,
    reduction: Literal["sum", "mean"],
    sums: KernelSum | None = None,
) -> Tensor:
    """Apply a `GNOBlock` (``linear`` transform) with its own weights over the neighbours of x among y.

    Positions are embedded, see `embed`. C must equal the block's output channels, and the reduction is that
    with which it was built. ``sums`` is what sums in place of `kernel_sum`. Returns [C, M, B]; zero where
    an output point has no neighbours.
    """
    kernel_CE = _edge_kernel(block.integral_transform.channel_mlp, y_ND, x_MD, table)
    if reduction == "mean":
        # Dividing the kernel, not the result, keeps the division off the sample dimension.
        count_M = table.indptr.diff().clamp(min=1).to(kernel_CE.dtype)
        kernel_CE = kernel_CE / count_M[table.row]
    if sums is not None:
        return sums(kernel_CE.t(), f_CNB.permute(1, 2, 0), table).permute(2, 0, 1)
    return kernel_sum(kernel_CE, f_CNB, table)


def embed(block: GNOBlock, points: Tensor) -> Tensor:
    """Positional embedding of points [N, 3] in the unit cube, as the block would compute it."""
    return points if block.pos_embedding is None else block.pos_embedding(points)
