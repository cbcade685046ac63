"""Embeddings of relations from tables, for rollouts on a CPU: a million pairs with the same weights.

What a feature with one degree of freedom, distance or difference in heading, adds to the embedding of a
relation is a curve: waves, a linear layer, normalisation, ReLU, and a linear layer. It is computed once at
the nodes of a grid, and between them by a straight line. Between nodes where an input of ReLU changes its
sign the curve has a kink; pairs in there, about a tenth, are computed by the formula.

A bearing, which fades out near 0 m, has a little of a second degree: there are two circles of nodes, with
radius 1 and a step less, and a straight line between them, too. Bearings within the second one, of the
nearest few metres, are computed by the formula.

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
    """bool: whether there is no kink between a node and the next, and those of the other circle."""
    second: int
    """Rows from a node to that of the second circle; 0: there is none."""


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
    table_TC: Tensor, extents: Sequence[float | None], eps: float, weights: Sequence[Tensor]
) -> Tables:
    """Tabulate features; see `chunked.relations` for arguments.

    ``extents`` are, of a feature of one number, the length of its curve, which begins at 0, and above which
    it is computed by the formula; of an angle given by its cosine and sine, the number of circles: 1, or 2
    if it may fade out; None: there is no curve.
    """
    parts, _ = by_feature(weights)
    values = [Tables.without_curves(table_TC, weights).value_TC]
    curves: list[Curve | None] = []
    first = len(table_TC)
    for extent, (frequency, weight, bias, *layers) in zip(extents, parts, strict=True):
        fastest = 2 * math.pi * float(frequency.norm(dim=0).max())
        is_angle = len(frequency) == 2
        length = 2 * math.pi if is_angle else extent
        if extent is None or length is None or not length * fastest < _STEP * _MOST:
            curves.append(None)
            continue
        count = max(1, math.ceil(length * fastest / _STEP))
        step = length / count
        at_T = torch.linspace(0, length, count + 1, dtype=torch.float64)
        feature = at_T[:, None]
        if is_angle:
            circle = torch.stack([at_T.cos(), at_T.sin()], dim=1)
            feature = torch.cat([circle * (1 - number * step) for number in range(int(extent))])
        signs = []
        for rows in chunked.chunks(len(feature), chunked.PAIRS):
            turns = feature[rows] @ frequency.double()
            phase = ((turns - turns.round()) * (2 * math.pi)).to(table_TC.dtype)
            wave = torch.cat([phase.cos(), phase.sin(), feature[rows].to(table_TC.dtype)], dim=1)
            active, *_ = rectified(linear(wave, weight, bias), layers, eps)
            values.append(linear(active, layers[2]))
            signs.append(active > 0)
        on = torch.cat(signs).unflatten(0, (-1, len(at_T)))
        smooth_T = (on[:, 1:] == on[:, :-1]).all(dim=2).all(dim=0)
        smooth_T &= (on[0] == on[-1]).all(dim=1)[1:]
        curves.append(Curve(first, step, smooth_T, len(at_T) * (len(on) - 1)))
        first += len(feature)
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
    whole = bool(mask_P.all())
    kept_N = _padded(torch.arange(len(mask_P)) if whole else mask_P.nonzero()[:, 0])
    starts = torch.arange(0, len(kept_N) + chunked.PAIRS, chunked.PAIRS)
    rows, shares = [entry_P[kept_N]], [torch.ones(len(kept_N), dtype=torch.float64)]
    by_formula, exact = [], []
    for value_NF, part, curve in zip(
        feature_PF[kept_N].split(widths, dim=1), parts, tables.curves, strict=True
    ):
        if curve is None:
            by_formula.append((value_NF, part))
            continue
        exact_NF = value_NF.double()  # of thousands of nodes
        at_N = exact_NF[:, 0] if len(part[0]) == 1 else _angle(exact_NF)
        place_N = at_N / curve.step
        node_N = place_N.long().clamp_(0, len(curve.smooth_T) - 1)
        beyond_N = place_N - node_N
        smooth_N = curve.smooth_T[node_N] & (beyond_N <= 1.001)
        circles = [(curve.first + node_N, torch.ones_like(at_N))]
        if curve.second:
            inwards_N = (1 - torch.hypot(*exact_NF.unbind(1))) / curve.step
            smooth_N &= inwards_N <= 1.001
            circles = [(circles[0][0], 1 - inwards_N), (circles[0][0] + curve.second, inwards_N)]
        for row_N, share_N in circles:
            rows += [row_N, row_N + 1]
            shares += [smooth_N * share_N * (1 - beyond_N), smooth_N * share_N * beyond_N]
        kinked = (~smooth_N).nonzero()[:, 0]
        bounds = torch.searchsorted(kinked, starts).tolist()
        exact.append((kinked, _curve(value_NF[_padded(kinked)], part, eps), bounds))
    row_NK, share_NK = torch.stack(rows, dim=1), torch.stack(shares, dim=1).to(feature_PF.dtype)
    hidden = tables.value_TC.shape[1]
    out_PC = tables.value_TC.new_empty(len(kept_N) if whole else len(mask_P), hidden)
    if not whole:
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
        if whole:  # several times faster than by numbers of rows
            out_PC[at] = normed_RC
        else:
            out_PC.index_copy_(0, kept_N[at], normed_RC)
    return out_PC[: len(mask_P)]


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
