"""What `kernels.c` computes, as functions of tensors that `KERNELS.suit` or `attend` takes.

Shape suffixes as in `chunked`.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from millrace.models import native
from millrace.models.native import Kernels, expect, pointer

KERNELS = Kernels(Path(__file__).with_name("kernels.c"))


class Given(NamedTuple):
    """What `attention` is computed from; see `chunked.attention`."""

    query_QHD: Tensor
    sources: Sequence[Tensor]
    """Keys and values, [N, 2 C]: one tensor, or without an index one of Q rows for each neighbour."""
    relation_QKC: Tensor
    to_key_HDC: Tensor
    to_value_HDC: Tensor
    index_QK: Tensor | None
    mask_QK: Tensor


class Feature(NamedTuple):
    """A feature of relations, and its MLP; see `chunked.relations`."""

    value_NF: Tensor
    """Columns of all features' numbers."""
    weights: Sequence[Tensor]
    rows: Tensor | None = None
    """int64: the pairs that it is computed for, in order; None: all."""
    kept_NC: Tensor | None = None
    """Becomes the values after the first layer."""


class Kept(NamedTuple):
    """What `relations` keeps for gradients."""

    sum_NC: Tensor
    deviation_N: Tensor


def attend(*tensors: Tensor, heads: int, width: int) -> bool:
    """Whether `attention` takes these tensors, of so many heads of so many channels each."""
    if heads not in (4, 8) or not KERNELS.suit(*tensors, channels=heads * width):
        return False
    vector = KERNELS.vector()
    return width % vector == 0 or 2 * width == vector


def attention(given: Given, kept: bool = False) -> tuple[Tensor, Tensor | None]:
    """`chunked.attention`, and if they are kept its weights, [Q, K, H]; masked pairs are passed over."""
    out = torch.empty_like(given.query_QHD)
    weight = out.new_empty(*given.mask_QK.shape, out.shape[1]) if kept else None
    KERNELS.call("attention", _attention(given), weight, out)
    return out, weight


def attention_gradients(given: Given, weight_QKH: Tensor, g_QHD: Tensor) -> tuple[Tensor, ...]:
    """Gradients of queries, sources, relations, and what makes keys and values of them."""
    query, relation, matrix = given.query_QHD, given.relation_QKC, given.to_key_HDC
    (sources,) = given.sources
    made = [*map(torch.empty_like, (query, relation)), query.new_empty(_parts(), 2, *matrix.shape)]
    grad_query, grad_relation, partial = made
    score, grad_sources = torch.empty_like(weight_QKH), torch.empty_like(sources)
    last = (grad_sources, len(sources))
    KERNELS.call("attention_gradients", _attention(given), g_QHD, weight_QKH, score, *made, *last)
    return grad_query, grad_sources, grad_relation, partial[0, 1], partial[0, 0]


def relations(
    features: Sequence[Feature],
    table_TC: Tensor,
    entry_NE: Tensor,
    share_NE: Tensor | None,
    last: Sequence[Tensor],
    eps: float,
    out_PC: Tensor,
    place_N: Tensor | None,
    kept: Kept | None = None,
) -> None:
    """Write normalised embeddings of N pairs to rows ``place`` of the result; None: in order.

    Rows of the table are added to the sum of the features' MLPs, with shares if there are any. `last` are
    scale, shift, weight and bias of the last layers.
    """
    made = []
    for value_NF, weights, rows, kept_NC in features:
        if rows is not None and not len(rows):
            continue
        sizes = (*weights[0].shape, 0 if rows is None else len(rows))
        given = (value_NF, *weights[:6], rows, kept_NC)
        made.append(_Feature(*sizes, *map(pointer, given)))
    numbers = features[0].value_NF.stride(0) if features else 0
    sizes = (len(entry_NE), table_TC.shape[1], len(made), numbers, entry_NE.shape[1])
    bags = (table_TC, entry_NE, share_NE, place_N, *last, *(kept or (None, None)), out_PC)
    about = _Relations(*sizes, *map(pointer, bags), eps)
    KERNELS.call("relations", about, (_Feature * len(made))(*made))


class _Attention(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_long)
            for name in ("queries", "neighbours", "heads", "width", "channels")
        ),
        *((name, ctypes.c_void_p) for name in ("query", "sources", "index", "mask", "relation")),
        *((name, ctypes.c_void_p) for name in ("to_key", "to_value")),
    ]


class _Feature(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("width", "bands", "count")),
        *((name, ctypes.c_void_p) for name in ("values", "frequency", "first", "bias", "scale")),
        *((name, ctypes.c_void_p) for name in ("shift", "second", "rows", "kept")),
    ]


class _Relations(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("pairs", "channels", "features", "numbers")),
        ("entries", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("table", "entry", "share", "place", "scale")),
        *(
            (name, ctypes.c_void_p)
            for name in ("shift", "weight", "bias", "sum", "deviation", "out")
        ),
        ("eps", ctypes.c_double),
    ]


def _attention(given: Given) -> _Attention:
    queries, heads, width = given.query_QHD.shape
    expect(given.mask_QK, queries, None)
    expect(given.relation_QKC, *given.mask_QK.shape, heads * width)
    for matrix in (given.to_key_HDC, given.to_value_HDC):
        expect(matrix, heads, width, heads * width)
    for source in given.sources:
        expect(source, None if given.index_QK is not None else queries, 2 * heads * width)
    sizes = (*given.mask_QK.shape, *given.to_key_HDC.shape)
    sources = (ctypes.c_void_p * len(given.sources))(*(one.data_ptr() for one in given.sources))
    index_QK, mask_QK = given.index_QK, given.mask_QK
    others = (index_QK, mask_QK, given.relation_QKC, given.to_key_HDC, given.to_value_HDC)
    pointers = (ctypes.addressof(sources), *map(pointer, others))
    made = _Attention(*sizes, given.query_QHD.data_ptr(), *pointers)
    made.kept = sources
    return made


def _parts() -> int:
    return int(native.library(KERNELS.source).parts())
