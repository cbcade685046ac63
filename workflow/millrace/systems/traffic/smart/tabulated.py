"""Embeddings of relations from tables, for rollouts on a CPU: a million pairs with the same weights.

What a feature with one degree of freedom, distance or difference in heading, adds to the embedding of a
relation is a curve: waves, a linear layer, normalisation, ReLU, and a linear layer. It is computed once at
the nodes of a grid, and between them by a straight line. Between nodes where an input of ReLU changes its
sign the curve has a kink; pairs in there, about a tenth, are computed by the formula.

Suffixes as in `chunked`; T nodes and rows of a table.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from millrace.models.products import linear
from millrace.systems.traffic.smart import chunked
from millrace.systems.traffic.smart.chunked import by_feature, rectified, waves

_STEP = 0.008
"""Distance of nodes, in radians of the fastest wave: the error of a straight line is an eighth of its
square, of what that wave contributes."""
_MOST = 1 << 16
"""Nodes of a curve. With more the table would be larger than caches."""

_ROWS = 128


class Curve(NamedTuple):
    """A feature on a grid."""

    first: int
    """Row of the first node."""
    step: float
    smooth_T: Tensor
    """bool: whether there is no kink between a node and the next."""


class Tables(NamedTuple):
    """What features add to the embedding of a relation."""

    value_TC: Tensor
    """Rows of the table of other values, with the biases of all features, then nodes of the curves."""
    curves: tuple[Curve | None, ...]
    """Of each feature; None: by the formula."""

    @classmethod
    def without_curves(cls, table_TC: Tensor, weights: Sequence[Tensor]) -> "Tables":
        """All features are computed by the formula."""
        parts, _ = by_feature(weights)
        bias_C = torch.stack([part[6] for part in parts]).sum(dim=0)
        return cls(table_TC + bias_C, (None,) * len(parts))


def tabulate(
    table_TC: Tensor, lengths: Sequence[float | None], eps: float, weights: Sequence[Tensor]
) -> Tables:
    """Tabulate features; see `chunked.relations` for arguments.

    ``lengths`` are those of the curves, which begin at 0: of a feature of one number, above which it is
    computed by the formula, or 2 π for an angle given by its cosine and sine; None: there is no curve.
    """
    parts, _ = by_feature(weights)
    values = [Tables.without_curves(table_TC, weights).value_TC]
    curves: list[Curve | None] = []
    first = len(table_TC)
    for length, (frequency, weight, bias, *layers) in zip(lengths, parts, strict=True):
        fastest = 2 * math.pi * float(frequency.norm(dim=0).max())
        if length is None or not length * fastest < _STEP * _MOST:
            curves.append(None)
            continue
        count = max(1, math.ceil(length * fastest / _STEP))
        at_T = torch.linspace(0, length, count + 1, dtype=torch.float64)
        feature = torch.stack([at_T.cos(), at_T.sin()][: len(frequency)], dim=1)
        if len(frequency) == 1:
            feature = at_T[:, None]
        turns = feature @ frequency.double()
        phase = ((turns - turns.round()) * (2 * math.pi)).to(table_TC.dtype)
        wave = torch.cat([phase.cos(), phase.sin(), feature.to(table_TC.dtype)], dim=1)
        active, *_ = rectified(linear(wave, weight, bias), layers, eps)
        on = active > 0
        values.append(linear(active, layers[2]))
        curves.append(Curve(first, length / count, (on[1:] == on[:-1]).all(dim=1)))
        first += len(at_T)
    return Tables(torch.cat(values), tuple(curves))


def relations(
    feature_PF: Tensor,
    mask_P: Tensor,
    entry_P: Tensor,
    widths: tuple[int, ...],
    eps: float,
    weights: Sequence[Tensor],
    tables: Tables,
) -> Tensor:
    """`chunked.relations` without gradients; ``entry_P`` are rows of the table of other values."""
    parts, last = by_feature(weights)
    kept_N = _padded(mask_P.nonzero()[:, 0])
    starts = torch.arange(0, len(kept_N) + chunked.PAIRS, chunked.PAIRS)
    rows, shares = [entry_P[kept_N]], [torch.ones_like(feature_PF[:, 0])[kept_N]]
    by_formula, exact = [], []
    for value_NF, part, curve in zip(
        feature_PF[kept_N].split(widths, dim=1), parts, tables.curves, strict=True
    ):
        if curve is None:
            by_formula.append((value_NF, part))
            continue
        at_N = value_NF[:, 0] if len(part[0]) == 1 else _angle(value_NF)
        place_N = at_N / curve.step
        node_N = place_N.long().clamp_(0, len(curve.smooth_T) - 1)
        beyond_N = place_N - node_N
        smooth_N = curve.smooth_T[node_N] & (beyond_N <= 1.001)
        rows += [curve.first + node_N, curve.first + node_N + 1]
        shares += [smooth_N * (1 - beyond_N), smooth_N * beyond_N]
        kinked = (~smooth_N).nonzero()[:, 0]
        bounds = torch.searchsorted(kinked, starts).tolist()
        exact.append((kinked, _curve(value_NF[_padded(kinked)], part, eps), bounds))
    row_NK, share_NK = torch.stack(rows, dim=1), torch.stack(shares, dim=1)
    hidden = tables.value_TC.shape[1]
    out_PC = tables.value_TC.new_empty(len(mask_P), hidden)
    out_PC.index_fill_(0, (~mask_P).nonzero()[:, 0], 0)
    for number, at in enumerate(chunked.chunks(len(kept_N), chunked.PAIRS)):
        total_RC = functional.embedding_bag(
            row_NK[at], tables.value_TC, mode="sum", per_sample_weights=share_NK[at]
        )
        for value_NF, part in by_formula:
            total_RC += _curve(value_NF[at], part, eps)
        for kinked, value_KC, bounds in exact:
            some = slice(*bounds[number : number + 2])
            total_RC.index_add_(0, kinked[some] - at.start, value_KC[some])
        made_RC = linear(rectified(total_RC, last, eps)[0], last[2], last[3])
        normed_RC = functional.layer_norm(made_RC, (hidden,), eps=eps)
        out_PC.index_copy_(0, kept_N[at], normed_RC)
    return out_PC


def _padded(rows: Tensor) -> Tensor:
    """The last row several times: oneDNN makes a kernel for each number of rows."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % _ROWS)])


def _angle(direction_N2: Tensor) -> Tensor:
    """Angle from 0 to 2 π, from its cosine and sine."""
    angle_N = torch.atan2(direction_N2[:, 1], direction_N2[:, 0])
    return torch.where(angle_N < 0, angle_N + 2 * math.pi, angle_N)


def _curve(value_NF: Tensor, part: Sequence[Tensor], eps: float) -> Tensor:
    """What a feature adds, without the last bias, by the formula."""
    first_NC = linear(waves(value_NF, part[0]), part[1], part[2])
    return linear(rectified(first_NC, part[3:], eps)[0], part[5])
