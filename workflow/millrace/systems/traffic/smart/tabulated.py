"""Embeddings of relations from tables, for rollouts on a CPU: a million pairs with the same weights.

What a feature with one degree of freedom, distance or difference in heading, adds to the embedding of a
relation is a curve: waves, a linear layer, normalisation, ReLU, and a linear layer. It is computed once at
the nodes of a grid, and between them by a straight line. Where an input of ReLU changes its sign the curve
has a kink, which is a node, too; pairs between nodes of the grid with two kinks, some of a thousand, are
computed by the formula.

A bearing, which fades out near 0 m, has a little of a second degree: there are two circles of nodes, with
radius 1 and a step less, and a straight line between them, too. Bearings with a kink between these nodes,
about a sixth, and within the second circle, of the nearest four metres, are computed by the formula.

Suffixes as in `chunked`; T nodes and rows of a table.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from millrace.models.products import linear
from millrace.systems.traffic.smart import chunked, kernels
from millrace.systems.traffic.smart.chunked import by_feature, rectified, waves

_STEP = 0.006
"""Distance of nodes, in radians of the fastest wave: the error of a straight line is an eighth of its
square, of what that wave contributes."""
_MOST = 1 << 16
"""Nodes of a circle, and of other curves, at most: 30 MB for 128 channels."""

_ROWS = 128
_FEW = 1 / 16
"""Share of masked pairs up to which embeddings of all are made: numbers of rows cost more."""


class Curve(NamedTuple):
    """A feature on a grid."""

    first: int
    """Row of the first node."""
    step: float
    smooth_T: Tensor
    """bool: whether straight lines hold between a node and the next."""
    kink_T: Tensor
    """float64: where the kink is between them, from 0 to 1; 1: there is none."""
    row_T: Tensor
    """int64: row of the kink, or of the next node."""
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


class _Made(NamedTuple):
    """Tables, and what they were made from."""

    about: tuple[object, ...]
    weights: list[Tensor]
    """Copies: weights change in place, as in training, or when averages of them take their place."""
    tables: Tables


KEPT: deque[_Made] = deque(maxlen=3)
"""The last ones, as many as a model has: batches of an evaluation have the same weights."""


def tabulate(
    table_TC: Tensor, extents: Sequence[float | None], eps: float, weights: Sequence[Tensor]
) -> Tables:
    """Tabulate features, or find the tables of equal weights; see `chunked.relations` for arguments.

    ``extents`` are, of a feature of one number, the length of its curve, which begins at 0, and above which
    it is computed by the formula; of an angle given by its cosine and sine, the number of circles: 1, or 2
    if it may fade out; None: there is no curve.
    """
    given, about = [table_TC, *weights], (*extents, eps, len(weights))
    for made in KEPT:
        if made.about == about and all(map(torch.equal, made.weights, given)):
            return made.tables
    tables = _tabulate(table_TC, extents, eps, weights)
    KEPT.append(_Made(about, [tensor.clone() for tensor in given], tables))
    return tables


def _tabulate(
    table_TC: Tensor, extents: Sequence[float | None], eps: float, weights: Sequence[Tensor]
) -> Tables:
    parts, _ = by_feature(weights)
    values = [Tables.without_curves(table_TC, weights).value_TC]
    curves: list[Curve | None] = []
    first = len(table_TC)
    for extent, part in zip(extents, parts, strict=True):
        fastest = 2 * math.pi * float(part[0].norm(dim=0).max())
        is_angle = len(part[0]) == 2
        length = 2 * math.pi if is_angle else extent
        if extent is None or length is None or not length * fastest < _STEP * _MOST:
            curves.append(None)
            continue
        count = max(1, math.ceil(length * fastest / _STEP))
        step, circles = length / count, int(extent) if is_angle else 1
        node_T = torch.arange(count + 1, dtype=torch.float64)
        radii = [1 - number * step for number in range(circles)]
        input_SC = torch.cat([_inputs(node_T * step, radius, part, eps) for radius in radii])
        on = (input_SC > 0).unflatten(0, (circles, -1))
        changes_TC = on[0, 1:] != on[0, :-1]
        kink_T, row_T = torch.ones(count).double(), first + 1 + torch.arange(count)
        start, first = first, first + len(input_SC)
        nodes = [input_SC]
        if circles > 1:
            changes_TC |= (on[1, 1:] != on[1, :-1]) | (on[0] != on[1])[1:]
            smooth_T = ~changes_TC.any(dim=1)
        else:
            number_T = changes_TC.sum(dim=1)
            smooth_T, node_K = number_T <= 1, (number_T == 1).nonzero()[:, 0]
            channel_K = changes_TC[node_K].byte().argmax(dim=1)
            left_K, right_K = (input_SC[node_K + n, channel_K].double() for n in (0, 1))
            kink_T[node_K] = left_K / (left_K - right_K)
            row_T[node_K] = first + torch.arange(len(node_K))
            nodes.append(_inputs((node_K + kink_T[node_K]) * step, 1, part, eps))
            first += len(node_K)
        values += [linear(input_RC.relu_(), part[5]) for input_RC in nodes]
        second = len(node_T) * (circles - 1)
        curves.append(Curve(start, step, smooth_T, kink_T, row_T, second))
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
    """`chunked.relations` without gradients; ``entry_P`` are rows of the table of other values.

    Where the mask is False there are any finite values.
    """
    parts, last = by_feature(weights)
    kept_N = mask_P.nonzero()[:, 0]
    whole = len(mask_P) - len(kept_N) <= len(mask_P) * _FEW
    if whole:  # masked ones may hold anything
        feature_PF = torch.where(mask_P[:, None], feature_PF, 0)
    hidden = tables.value_TC.shape[1]
    suits = kernels.KERNELS.suit(feature_PF, tables.value_TC, *weights, channels=hidden)
    kept_N = torch.arange(len(mask_P)) if whole else kept_N
    kept_N = kept_N if suits else _padded(kept_N)
    mask_N = mask_P[kept_N]
    rows, shares = [entry_P[kept_N]], [torch.ones(len(kept_N), dtype=torch.float64)]
    computed = []
    for value_NF, part, curve in zip(
        feature_PF[kept_N].split(widths, dim=1), parts, tables.curves, strict=True
    ):
        if curve is None:
            computed.append(kernels.Feature(value_NF, part))
            continue
        exact_NF = value_NF.double()  # of thousands of nodes
        at_N = exact_NF[:, 0] if len(part[0]) == 1 else _angle(exact_NF)
        place_N = at_N / curve.step
        node_N = place_N.long().clamp_(0, len(curve.smooth_T) - 1)
        beyond_N = place_N - node_N
        smooth_N = curve.smooth_T[node_N] & (beyond_N >= 0) & (beyond_N <= 1.001)
        first_N = curve.first + node_N
        if curve.second:
            inwards_N = (1 - torch.hypot(*exact_NF.unbind(1))) / curve.step
            smooth_N &= inwards_N <= 1.001
            inside_N = first_N + curve.second
            lines = [(first_N, first_N + 1, 1 - inwards_N), (inside_N, inside_N + 1, inwards_N)]
        else:
            kink_N, row_N = curve.kink_T[node_N], curve.row_T[node_N]
            after_N = beyond_N > kink_N
            beyond_N = torch.where(after_N, (beyond_N - kink_N) / (1 - kink_N), beyond_N / kink_N)
            beyond_N = beyond_N.nan_to_num_(1.0).clamp_(0, 1)
            left_N = torch.where(after_N, row_N, first_N)
            right_N = torch.where(after_N, first_N + 1, row_N)
            lines = [(left_N, right_N, torch.ones_like(beyond_N))]
        for left_N, right_N, share_N in lines:
            rows += [left_N, right_N]
            shares += [smooth_N * share_N * (1 - beyond_N), smooth_N * share_N * beyond_N]
        kinked = (mask_N & ~smooth_N).nonzero()[:, 0]
        computed.append(kernels.Feature(value_NF, part, kinked))
    row_NK, share_NK = torch.stack(rows, dim=1), torch.stack(shares, dim=1).to(feature_PF.dtype)
    out_PC = tables.value_TC.new_empty(len(kept_N) if whole else len(mask_P), hidden)
    if not whole:
        out_PC.index_fill_(0, (~mask_P).nonzero()[:, 0], 0)
    place_N = None if whole else kept_N
    given = (computed, tables.value_TC, row_NK, share_NK, last, eps, out_PC, place_N)
    (kernels.relations if suits else _by_chunks)(*given)
    return out_PC[: len(mask_P)]


def _by_chunks(
    features: Sequence[kernels.Feature],
    table_TC: Tensor,
    row_NK: Tensor,
    share_NK: Tensor,
    last: Sequence[Tensor],
    eps: float,
    out_PC: Tensor,
    place_N: Tensor | None,
) -> None:
    """`kernels.relations` by PyTorch."""
    centred_CC, centred_C = (one - one.mean(dim=0) for one in last[2:])
    starts = torch.arange(0, len(row_NK) + chunked.PAIRS, chunked.PAIRS)
    by_formula = [(value_NF, part) for value_NF, part, rows, _ in features if rows is None]
    exact = []
    for value_NF, part, kinked, _ in features:
        if kinked is not None:
            bounds = torch.searchsorted(kinked, starts).tolist()
            some = value_NF[_padded(kinked)].split(chunked.PAIRS)
            exact.append((kinked, torch.cat([_curve(one, part, eps) for one in some]), bounds))
    for number, at in enumerate(chunked.chunks(len(row_NK), chunked.PAIRS)):
        total_RC = functional.embedding_bag(
            row_NK[at], table_TC, mode="sum", per_sample_weights=share_NK[at]
        )
        for value_NF, part in by_formula:
            total_RC += _curve(value_NF[at], part, eps)
        for kinked, value_KC, bounds in exact:
            those = slice(*bounds[number : number + 2])
            total_RC.index_add_(0, kinked[those] - at.start, value_KC[those])
        # Normalisation of rows whose mean is 0 already.
        made_RC = linear(rectified(total_RC, last, eps)[0], centred_CC, centred_C)
        variance_R1 = torch.linalg.vector_norm(made_RC, dim=1, keepdim=True).square_()
        scale_R1 = variance_R1.div_(out_PC.shape[1]).add_(eps).rsqrt_()
        if place_N is None:  # several times faster than by numbers of rows
            torch.mul(made_RC, scale_R1, out=out_PC[at])
        else:
            out_PC.index_copy_(0, place_N[at], made_RC.mul_(scale_R1))


def _inputs(at_T: Tensor, radius: float, part: Sequence[Tensor], eps: float) -> Tensor:
    """Inputs of ReLU at places of a curve, in radians for angles."""
    made = []
    for at in at_T.split(chunked.PAIRS):
        feature = at[:, None]
        if len(part[0]) == 2:
            feature = radius * torch.stack([at.cos(), at.sin()], dim=1)
        turns = feature @ part[0].double()
        phase = ((turns - turns.round()) * (2 * math.pi)).to(part[0].dtype)
        wave = torch.cat([phase.cos(), phase.sin(), feature.to(part[0].dtype)], dim=1)
        first_RC = linear(wave, part[1], part[2])
        made.append(functional.layer_norm(first_RC, first_RC.shape[1:], part[3], part[4], eps))
    return torch.cat(made)


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
