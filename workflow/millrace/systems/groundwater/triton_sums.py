"""Kernel sums on a GPU by kernels of Triton, which CUDA builds of PyTorch bring along.

To be imported where there is Triton. A program sums a row of the neighbour table, or of its transpose,
edge after edge: without atomic additions, so with the same bits each time.

Shape suffixes: N points integrated over, M output points, E edges, B samples, C channels.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton
from triton import language as tl

from millrace.systems.groundwater.gno import NeighbourTable

INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels are interpreted, with numbers in main memory: ``TRITON_INTERPRET=1``."""
EDGES = 8
"""Edges of a row that are taken at once: what they need is under way together."""
TILE = 1024
"""Inner products that a program computes."""


@triton.jit
def sums_of_rows(
    out: tl.tensor,
    kernel: tl.tensor,
    f: tl.tensor,
    indptr: tl.tensor,
    point: tl.tensor,
    order: tl.tensor,
    channels: tl.tensor,
    width: tl.tensor,
    ORDERED: tl.constexpr,
    EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out[m,j] = sum over p in row m of kernel[e,j % C] f[point[e],j], where j < B C and e = order[p]."""
    m = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = j % channels
    end = tl.load(indptr + m + 1)
    total = tl.zeros([EDGES, BLOCK], out.dtype.element_ty)
    for begin in range(tl.load(indptr + m), end, EDGES):
        p = begin + tl.arange(0, EDGES).to(tl.int64)
        e = tl.load(order + p, mask=p < end, other=0) if ORDERED else p
        n = tl.load(point + e, mask=p < end, other=0)
        inside = (p < end)[:, None] & (j < width)[None, :]
        k = tl.load(kernel + e[:, None] * channels + channel[None, :], mask=inside, other=0)
        value = tl.load(f + n[:, None] * width + j[None, :], mask=inside, other=0)
        total += k.to(total.dtype) * value.to(total.dtype)
    tl.store(out + m * width + j, tl.sum(total, 0), mask=j < width)


@triton.jit
def products_of_ends(
    out: tl.tensor,
    g: tl.tensor,
    f: tl.tensor,
    row: tl.tensor,
    index: tl.tensor,
    edges: tl.tensor,
    channels: tl.tensor,
    width: tl.tensor,
    EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out[e,c] = sum over b of g[row[e],b,c] f[index[e],b,c]."""
    e = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (e < edges)[:, None] & (c < channels)[None, :]
    m = tl.load(row + e, mask=e < edges, other=0)[:, None] * width + c[None, :]
    n = tl.load(index + e, mask=e < edges, other=0)[:, None] * width + c[None, :]
    total = tl.zeros([EDGES, BLOCK], out.dtype.element_ty)
    for sample in range(0, width, channels):
        left = tl.load(g + m + sample, mask=inside, other=0)
        right = tl.load(f + n + sample, mask=inside, other=0)
        total += left.to(total.dtype) * right.to(total.dtype)
    tl.store(out + e[:, None] * channels + c[None, :], total, mask=inside)


def _block(size: int, most: int) -> int:
    """A power of two for ``size`` numbers; compared alone, which leaves a compiler's sizes open."""
    block = 16
    while block < size and block < most:
        block *= 2
    return block


# A compiler sees what an operation of `triton_op` does. What Triton interprets needs numbers in memory.
_operation = custom_op if INTERPRETED else triton_op


@_operation("millrace::row_sums", mutates_args=())
def row_sums(
    kernel_EC: Tensor,
    f_NBC: Tensor,
    indptr: Tensor,
    index: Tensor,
    row: Tensor,
    transposed_indptr: Tensor,
    transposed_edge: Tensor,
    transposed: bool,
) -> Tensor:
    """Sums over the rows of a table, or of its transpose, whose fields these are: [M, B, C]."""
    order, point = (transposed_edge, row) if transposed else (index, index)
    starts = transposed_indptr if transposed else indptr
    _, samples, channels = f_NBC.shape
    rows, width = starts.shape[0] - 1, samples * channels
    out = f_NBC.new_empty(rows, samples, channels, dtype=_exact(kernel_EC, f_NBC))
    block = _block(width, 256)
    wrap_triton(sums_of_rows)[(rows, triton.cdiv(width, block))](
        *(out, kernel_EC, f_NBC, starts, point, order, channels, width, transposed, EDGES, block)
    )
    return out


@_operation("millrace::edge_products", mutates_args=())
def edge_products(g_MBC: Tensor, f_NBC: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """Inner products over the samples of both ends of every edge, [E, C]."""
    edges, (_, samples, channels) = row.shape[0], f_NBC.shape
    out = f_NBC.new_empty(edges, channels, dtype=_exact(g_MBC, f_NBC))
    block = _block(channels, 128)
    several = TILE // block
    wrap_triton(products_of_ends)[(triton.cdiv(edges, several), triton.cdiv(channels, block))](
        *(out, g_MBC, f_NBC, row, index, edges, channels, samples * channels, several, block)
    )
    return out


def _exact(a: Tensor, b: Tensor) -> torch.dtype:
    """Type in which products are added: not in half precision."""
    return torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])


def _backward(ctx: Any, g_MBC: Tensor) -> tuple[Tensor | None, ...]:
    kernel_EC, f_NBC, *table = ctx.saved_tensors
    _, index, row, *_ = table
    g_MBC = g_MBC.contiguous()
    grad_kernel = grad_f = None
    if ctx.needs_input_grad[0]:
        grad_kernel = edge_products(g_MBC, f_NBC, row, index).to(kernel_EC.dtype)
    if ctx.needs_input_grad[1]:
        grad_f = row_sums(kernel_EC, g_MBC, *table, True).to(f_NBC.dtype)
    return grad_kernel, grad_f, *[None] * 6


row_sums.register_autograd(_backward, setup_context=_setup)
if INTERPRETED:
    row_sums.register_fake(
        lambda kernel, f, indptr, index, row, back, edge, transposed: f.new_empty(
            (back if transposed else indptr).shape[0] - 1, *f.shape[1:], dtype=_exact(kernel, f)
        )
    )
    edge_products.register_fake(
        lambda g, f, row, index: f.new_empty(row.shape[0], f.shape[2], dtype=_exact(g, f))
    )


def kernel_sum(kernel_EC: Tensor, f_NBC: Tensor, table: NeighbourTable) -> Tensor:
    """Sum kernel times function over the neighbours of every output point, [M, B, C].

    In float32, or float64 if one of them is; in half precision they are only read.
    """
    places = (table.indptr, table.index, table.row, table.transposed_indptr, table.transposed_edge)
    made: Tensor = row_sums(kernel_EC.contiguous(), f_NBC.contiguous(), *places, False)
    return made
