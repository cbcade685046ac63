"""Graph neural operator: kernel integrals over fixed neighbour tables.

The layer is the ``linear`` transform of the Graph Neural Operator [1]_,

    u(x_m) = sum_{n in N(m)} k(x_m, y_n) * f(y_n)     (optionally divided by |N(m)|),

with the kernel k an MLP of the two embedded positions. Parameters are those of
`neuralop.layers.gno_block.GNOBlock`; only the evaluation differs. What depends on the geometry
alone (neighbours, embeddings) is computed once, samples share the kernel of their geometry, and the
reduction runs on whole segments instead of one output point at a time.

Shape suffixes: N points integrated over, M output points, E edges, B samples, C channels,
D embedding channels, H kernel width.

.. [1] Li et al. (2020), Neural Operator: Graph Kernel Network for Partial Differential Equations,
   arXiv:2003.03485.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from millrace.systems.groundwater.graph import CSR
from millrace.systems.groundwater.neuraloperator import GNOBlock, LinearChannelMLP

# Edge tensors of one pass are [E, B, C]; beyond this many elements the samples are taken in turns so
# that a fine latent grid does not decide the batch size.
MAX_EDGE_ELEMENTS = 64_000_000


@dataclass(frozen=True)
class NeighbourTable:
    """Neighbours of M output points among N points, as a CSR table and its transpose.

    The transpose makes the backward pass a segment reduction too, so that gradients are
    deterministic: no atomic additions.
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

    @classmethod
    def from_csr(cls, csr: CSR, n_points: int) -> "NeighbourTable":
        """Build the table of ``csr``, whose neighbours are drawn from ``n_points`` points."""
        indptr, index = torch.from_numpy(csr.indptr), torch.from_numpy(csr.index)
        row = torch.repeat_interleave(torch.arange(len(indptr) - 1), indptr.diff())
        counts = torch.bincount(index, minlength=n_points)
        transposed_indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(indptr, index, row, transposed_indptr, torch.argsort(index, stable=True))

    def to(self, device: torch.device) -> "NeighbourTable":
        """Copy to a device."""
        return NeighbourTable(*(getattr(self, name).to(device) for name in self.__annotations__))


def _segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum rows of ``values`` [E, ...] over ``offsets[i]:offsets[i+1]``; empty segments give zero."""
    flat = values.reshape(values.shape[0], -1)
    out = torch.segment_reduce(flat, "sum", offsets=offsets, axis=0, initial=0.0, unsafe=True)
    return out.reshape(-1, *values.shape[1:])


class _KernelSum(torch.autograd.Function):
    """out[m,b,c] = sum_{e in row m} kernel[e,c] f[index[e],b,c], without saving edge tensors."""

    @staticmethod
    def forward(ctx: Any, kernel_EC: Tensor, f_NBC: Tensor, table: NeighbourTable) -> Tensor:
        ctx.save_for_backward(kernel_EC, f_NBC)
        ctx.table = table
        return _segment_sum(kernel_EC.unsqueeze(1) * f_NBC[table.index], table.indptr)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        kernel_EC, f_NBC = ctx.saved_tensors
        table: NeighbourTable = ctx.table
        grad_EBC = grad_outputs[0].contiguous()[table.row]
        grad_kernel = grad_f = None
        if ctx.needs_input_grad[0]:
            grad_kernel = (grad_EBC * f_NBC[table.index]).sum(dim=1)
        if ctx.needs_input_grad[1]:
            weighted = grad_EBC.mul_(kernel_EC.unsqueeze(1))
            grad_f = _segment_sum(weighted[table.transposed_edge], table.transposed_indptr)
        return grad_kernel, grad_f, None


def kernel_sum(kernel_EC: Tensor, f_NBC: Tensor, table: NeighbourTable) -> Tensor:
    """Sum kernel times function over the neighbours of every output point, [M, B, C].

    The kernel of an edge is shared by all samples.
    """
    if kernel_EC.dtype in (torch.float16, torch.bfloat16):
        # Under autocast: hundreds of neighbours are not summed in half precision.
        kernel_EC = kernel_EC.float()
    f_NBC = f_NBC.to(kernel_EC.dtype)
    step = max(1, MAX_EDGE_ELEMENTS // max(1, kernel_EC.numel()))
    if f_NBC.shape[1] <= step:
        return _KernelSum.apply(kernel_EC, f_NBC, table)
    parts = [_KernelSum.apply(kernel_EC, part, table) for part in f_NBC.split(step, dim=1)]
    return torch.cat(parts, dim=1)


def _edge_kernel(
    mlp: LinearChannelMLP, y_ND: Tensor, x_MD: Tensor, table: NeighbourTable
) -> Tensor:
    """Evaluate the kernel MLP on every edge, [E, C].

    Its first layer acts on the concatenation [y, x]; being linear it is applied to the points before
    they are gathered to edges, which saves the [E, 2 D] tensor.
    """
    first = mlp.fcs[0]
    weight_y, weight_x = first.weight.split(y_ND.shape[1], dim=1)
    hidden = nn.functional.linear(y_ND, weight_y)[table.index]
    hidden = hidden + nn.functional.linear(x_MD, weight_x, first.bias)[table.row]
    for layer in list(mlp.fcs)[1:]:
        hidden = layer(mlp.non_linearity(hidden))
    return hidden


def gno(
    block: GNOBlock,
    y_ND: Tensor,
    x_MD: Tensor,
    f_NBC: Tensor,
    table: NeighbourTable,
    reduction: Literal["sum", "mean"],
) -> Tensor:
    """Apply a `GNOBlock` (``linear`` transform) with its own weights over the neighbours of x among y.

    Positions are embedded, see `embed`. C must equal the block's output channels, and the reduction is that
    with which it was built. Returns [M, B, C]; zero where an output point has no neighbours.
    """
    kernel_EC = _edge_kernel(block.integral_transform.channel_mlp, y_ND, x_MD, table)
    if reduction == "mean":
        # Dividing the kernel, not the result, keeps the division off the sample dimension.
        count_M1 = table.indptr.diff().clamp(min=1).to(kernel_EC.dtype).unsqueeze(1)
        kernel_EC = kernel_EC / count_M1[table.row]
    return kernel_sum(kernel_EC, f_NBC, table)


def embed(block: GNOBlock, points: Tensor) -> Tensor:
    """Positional embedding of points [N, 3] in the unit cube, as the block would compute it."""
    return points if block.pos_embedding is None else block.pos_embedding(points)
