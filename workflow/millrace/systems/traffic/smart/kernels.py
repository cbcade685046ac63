"""What `kernels.c` computes, as functions of tensors; `suit` says whether it takes them.

Shape suffixes as in `chunked`.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from millrace.models import native

_SOURCE = Path(__file__).with_name("kernels.c")


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


def suit(*tensors: Tensor, heads: int, width: int) -> bool:
    """Whether kernels take these tensors, of so many heads of so many channels each."""
    if not native.suit(*tensors) or heads not in (4, 8):
        return False
    library = native.library(_SOURCE)
    if library is None:
        return False
    vector = library.vector()
    return heads * width % vector == 0 and (width % vector == 0 or 2 * width == vector)


def attention(given: Given, kept: bool = False) -> tuple[Tensor, Tensor | None]:
    """`chunked.attention`, and if they are kept its weights, [Q, K, H]; masked pairs are passed over."""
    out = torch.empty_like(given.query_QHD)
    weight = out.new_empty(*given.mask_QK.shape, out.shape[1]) if kept else None
    _call("attention", _attention(given), weight, out)
    return out, weight


def attention_gradients(given: Given, weight_QKH: Tensor, g_QHD: Tensor) -> tuple[Tensor, ...]:
    """Gradients of queries, sources, relations, and what makes keys and values of them."""
    query, relation, matrix = given.query_QHD, given.relation_QKC, given.to_key_HDC
    (sources,) = given.sources
    made = [*map(torch.empty_like, (query, relation)), query.new_empty(_parts(), 2, *matrix.shape)]
    grad_query, grad_relation, partial = made
    score, grad_sources = torch.empty_like(weight_QKH), torch.empty_like(sources)
    last = (grad_sources, len(sources))
    _call("attention_gradients", _attention(given), g_QHD, weight_QKH, score, *made, *last)
    return grad_query, grad_sources, grad_relation, partial[0, 1], partial[0, 0]


class _Attention(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_long)
            for name in ("queries", "neighbours", "heads", "width", "channels")
        ),
        *((name, ctypes.c_void_p) for name in ("query", "sources", "index", "mask", "relation")),
        *((name, ctypes.c_void_p) for name in ("to_key", "to_value")),
    ]


def _attention(given: Given) -> _Attention:
    sizes = (*given.mask_QK.shape, *given.to_key_HDC.shape)
    sources = (ctypes.c_void_p * len(given.sources))(*(one.data_ptr() for one in given.sources))
    index = None if given.index_QK is None else given.index_QK.data_ptr()
    others = (given.mask_QK, given.relation_QKC, given.to_key_HDC, given.to_value_HDC)
    pointers = (ctypes.addressof(sources), index, *(one.data_ptr() for one in others))
    made = _Attention(*sizes, given.query_QHD.data_ptr(), *pointers)
    made.kept = sources
    return made


def _parts() -> int:
    parts: int = native.library(_SOURCE).parts()  # type: ignore[union-attr]
    return parts


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    return ctypes.c_long(value) if isinstance(value, int) else value


def _call(name: str, *given: Any) -> None:
    function = getattr(native.library(_SOURCE), name)
    function(*map(_plain, given), torch.get_num_threads())
