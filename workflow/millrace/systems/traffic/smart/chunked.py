"""Embeddings of relations, and attention, on a CPU: in chunks whose intermediate values stay in the cache.

Both are those of `FourierEmbedding` and `RelativeAttention`, to rounding, with gradients written out. What
has pairs of a query and a source times channels is made and used chunk by chunk, and little of it is kept
for the backward pass.

Shape suffixes as in `layers`, and P pairs of a query and a source, N those that are not masked, R pairs
of a chunk, F numbers that make up features, W cosines, sines and numbers of a feature, B frequencies, T
rows of a table, and G twice the heads.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from millrace.models.products import add_product, is_eager, product
from millrace.systems.traffic.smart import kernels

PAIRS = 1024
"""Pairs of a chunk: each has some KiB of intermediate values."""


_MANY = 32
"""Above so many sources for each neighbour it is better to gather keys than to take all products."""


def applies(*tensors: Tensor) -> bool:
    """Whether chunks are of use: on a CPU, not compiled, and without products in half precision."""
    return all(map(is_eager, tensors))


def relations(
    feature_PF: Tensor,
    mask_P: Tensor,
    table_TC: Tensor,
    entry_P: Tensor,
    widths: tuple[int, ...],
    eps: float,
    weights: Sequence[Tensor],
) -> Tensor:
    """Normalised embeddings of pairs, [P, C]; 0 where the mask is False. Features have no gradients.

    ``table_TC[entry_P]`` is added to the sum of the features' MLPs. ``weights`` are, for each feature,
    frequencies, weight and bias of the first layer, and scale, shift, weight and bias of normalisation and
    second layer; then these four of the layers after the sum.
    """
    given = (feature_PF, mask_P, table_TC, entry_P, widths, eps)
    return cast(Tensor, _Relations.apply(*given, *weights))


def attention(
    query_QHD: Tensor,
    sources_N2C: Tensor,
    to_key_HDC: Tensor,
    to_value_HDC: Tensor,
    index_QK: Tensor,
    mask_QK: Tensor,
    relation_QKC: Tensor,
) -> Tensor:
    """Attention to neighbours, [Q, H, D]; see `RelativeAttention`.

    Queries are scaled, sources are keys and values, and two weights make keys and values of relations.
    """
    given = (query_QHD, sources_N2C, relation_QKC, to_key_HDC, to_value_HDC)
    pairs = (index_QK.contiguous(), mask_QK.contiguous())
    if not kernels.attend(*given, heads=query_QHD.shape[1], width=query_QHD.shape[2]):
        return cast(Tensor, _Attention.apply(*given, *pairs))
    if torch.is_grad_enabled():
        return cast(Tensor, _Kernels.apply(*given, *pairs))
    return kernels.attention(kernels.Given(query_QHD, [sources_N2C], *given[2:], *pairs))[0]


def dense_enough(index_QK: Tensor, groups: int, sources: int) -> bool:
    """Whether `grouped_attention` is of use: without gradients, and with few sources in a group."""
    few = sources <= _MANY * index_QK.shape[-1] * groups
    return few and index_QK.numel() > 0 and not torch.is_grad_enabled() and applies(index_QK)


class Part(NamedTuple):
    """Queries and the sources of their neighbours, of some groups in `grouped_attention`."""

    query_R: slice | Tensor
    """Rows of the queries."""
    source_S: slice | Tensor
    """Rows of the sources, equally many for each group."""
    local_G1RK: Tensor
    """int64: numbers of neighbours among the sources of the group."""
    value_EK: Tensor
    """int64: for each query and head, rows of the values of the neighbours, of all heads in turn."""


def parts(
    index_QK: Tensor, groups: int, sources: int, heads: int, order_Q: Tensor | None = None
) -> tuple[Part, ...]:
    """Parts for `grouped_attention`, for all layers.

    Queries and sources are in so many equal groups, and neighbours of a query in its own. Row i of
    ``index_QK`` is of query ``order_Q[i]``: it is best if neighbouring rows have neighbours in common.
    """
    head_H1, own = torch.arange(heads)[:, None], sources // groups
    index_GRK = index_QK.unflatten(0, (groups, -1)) - torch.arange(groups)[:, None, None] * own
    made, rows, size = [], index_GRK.shape[1], max(1, 8 * PAIRS // index_QK.shape[1])
    for group in chunks(groups, max(1, size // rows)):
        for row in chunks(rows, size):
            local_GRK = index_GRK[group, row]
            source_S: slice | Tensor = slice(group.start * own, group.stop * own)
            width, first = own, group.start * rows + row.start
            if rows > size:  # of the only group those that are neighbours
                used_N = index_QK.new_zeros(own).index_fill_(0, local_GRK.flatten(), 1)
                used_S = used_N.nonzero()[:, 0]
                local_GRK, width = (used_N.cumsum(0) - 1)[local_GRK], len(used_S)
                source_S = used_S + group.start * own
            own_GRK = local_GRK + torch.arange(len(local_GRK))[:, None, None] * width
            value_EK = (own_GRK.flatten(0, 1)[:, None] * heads + head_H1).flatten(0, 1)
            at = slice(first, first + local_GRK.shape[0] * local_GRK.shape[1])
            query_R = at if order_Q is None else order_Q[at]
            made.append(Part(query_R, source_S, local_GRK[:, None], value_EK))
    return tuple(made)


def grouped_attention(
    query_QHD: Tensor,
    sources_N2C: Tensor,
    to_key_HDC: Tensor,
    to_value_HDC: Tensor,
    mask_QK: Tensor,
    relation_QKC: Tensor,
    given: tuple[Part, ...],
) -> Tensor:
    """`attention`, without gradients, within groups of queries and sources; see `parts`.

    Products of queries and keys are taken with all sources of the part, and those of neighbours picked:
    no keys or values of neighbours are gathered.
    """
    heads, width = query_QHD.shape[1:]
    out_QHD, first = torch.empty_like(query_QHD), 0
    for part in given:
        groups, _, each, neighbours = part.local_G1RK.shape
        rows = slice(first, first + groups * each)
        first = rows.stop
        query, relation, mask = query_QHD[part.query_R], relation_QKC[rows], mask_QK[rows, None]
        key, value = sources_N2C[part.source_S].unflatten(1, (2, heads, width)).unbind(1)
        key_GHDN = key.unflatten(0, (groups, -1)).permute(0, 2, 3, 1)
        score = torch.matmul(query.unflatten(0, (groups, each)).transpose(1, 2), key_GHDN)
        score = score.gather(3, part.local_G1RK.expand(-1, heads, -1, -1)).transpose(1, 2)
        score = torch.bmm(_by_head(query, to_key_HDC), relation.mT) + score.flatten(0, 1)
        score.masked_fill_(~mask, -1e4)
        weight = torch.softmax(score, dim=-1)
        weight *= mask
        seen = torch.bmm(torch.bmm(weight, relation).transpose(0, 1), to_value_HDC.mT)
        found = functional.embedding_bag(
            part.value_EK,
            value.flatten(0, 1),
            mode="sum",
            per_sample_weights=weight.view(-1, neighbours),
        )
        out_QHD[part.query_R] = found.view_as(query) + seen.transpose(0, 1)
    return out_QHD


def attention_over_steps(
    query_QHD: Tensor,
    steps: Sequence[Tensor],
    to_key_HDC: Tensor,
    to_value_HDC: Tensor,
    mask_QK: Tensor,
    relation_QKC: Tensor,
) -> Tensor:
    """`attention`, without gradients, of each query to its own rows of K tensors, [Q, 2 C] each.

    Scores are [K, Q, H]: operations on many short rows, of the K neighbours, would be slow.
    """
    heads, width = query_QHD.shape[1:]
    given = (query_QHD, *steps, relation_QKC, to_key_HDC, to_value_HDC)
    if kernels.attend(*given, heads=heads, width=width):
        about = (relation_QKC, to_key_HDC, to_value_HDC, None, mask_QK.contiguous())
        return kernels.attention(kernels.Given(query_QHD, steps, *about))[0]
    own = torch.eye(heads, dtype=query_QHD.dtype).repeat_interleave(width, dim=0)
    out_QHD = torch.empty_like(query_QHD)
    for rows in chunks(len(query_QHD), max(1, 8 * PAIRS // len(steps))):
        query_RHD, relation, mask_KR1 = (
            query_QHD[rows],
            relation_QKC[rows],
            mask_QK[rows].t()[..., None],
        )
        both = [step[rows].chunk(2, dim=1) for step in steps]
        score_KRH = (
            torch.bmm(relation, _by_head(query_RHD, to_key_HDC).mT).transpose(0, 1).contiguous()
        )
        for score_RH, (key_RC, _) in zip(score_KRH, both, strict=True):
            score_RH.addmm_(query_RHD.flatten(1) * key_RC, own)
        weight_KRH = torch.softmax(score_KRH.masked_fill_(~mask_KR1, -1e4), dim=0)
        weight_KRH *= mask_KR1
        seen = torch.bmm(weight_KRH.permute(1, 2, 0), relation).transpose(0, 1)
        out_RHD = out_QHD[rows]
        out_RHD.copy_(torch.bmm(seen, to_value_HDC.mT).transpose(0, 1))
        for weight_RH, (_, value_RC) in zip(weight_KRH, both, strict=True):
            out_RHD.addcmul_(weight_RH[..., None], value_RC.unflatten(1, (heads, width)))
    return out_QHD


class _Relations(torch.autograd.Function):
    """See `relations`."""

    @staticmethod
    def forward(
        ctx: Any,
        feature_PF: Tensor,
        mask_P: Tensor,
        table_TC: Tensor,
        entry_P: Tensor,
        widths: tuple[int, ...],
        eps: float,
        *weights: Tensor,
    ) -> Tensor:
        parts, last = by_feature(weights)
        kept_N = mask_P.nonzero()[:, 0]
        hidden = table_TC.shape[1]
        shape = (len(kept_N), hidden)
        first_NC = [table_TC.new_empty(shape) for _ in parts]
        sum_NC, deviation_N = table_TC.new_empty(shape), table_TC.new_empty(shape[0], 1)
        out_PC = table_TC.new_zeros(len(mask_P), hidden)
        bias_C = torch.stack([part[6] for part in parts]).sum(dim=0)
        suits = kernels.KERNELS.suit(feature_PF, table_TC, *weights, channels=hidden)
        if suits:
            entry_N1, value_NF = entry_P[kept_N][:, None], feature_PF[kept_N]
            values = value_NF.split(widths, dim=1)
            nothing = [None] * len(parts)
            features = [*map(kernels.Feature, values, parts, nothing, first_NC)]
            about = (table_TC + bias_C, entry_N1, None, last, eps, out_PC, kept_N)
            kernels.relations(features, *about, kernels.Kept(sum_NC, deviation_N))
        for rows in () if suits else chunks(len(kept_N), PAIRS):
            pair_R = kept_N[rows]
            total_RC = table_TC.index_select(0, entry_P.index_select(0, pair_R)).add_(bias_C)
            values = feature_PF.index_select(0, pair_R).split(widths, dim=1)
            for value_RF, kept_NC, part in zip(values, first_NC, parts, strict=True):
                wave_RW = waves(value_RF, part[0])
                first_RC = torch.add(product(wave_RW, part[1]), part[2], out=kept_NC[rows])
                add_product(total_RC, rectified(first_RC, part[3:], eps)[0], part[5])
            sum_NC[rows] = total_RC
            made_RC = product(rectified(total_RC, last, eps)[0], last[2]).add_(last[3])
            made_RC, _, deviation_N[rows] = torch.native_layer_norm(
                made_RC, (hidden,), None, None, eps
            )
            out_PC.index_copy_(0, pair_R, made_RC)
        ctx.widths, ctx.eps = widths, eps
        ctx.save_for_backward(
            *(feature_PF, kept_N, entry_P, table_TC, sum_NC, deviation_N, out_PC),
            *first_NC,
            *weights,
        )
        return out_PC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        feature_PF, kept_N, entry_P, table_TC, sum_NC, deviation_N, out_PC, *others = (
            ctx.saved_tensors
        )
        first_NC, weights = others[: len(ctx.widths)], others[len(ctx.widths) :]
        parts, last = by_feature(weights)
        grad_table = torch.zeros_like(table_TC)
        grad_weights = [torch.zeros_like(weight) for weight in weights]
        grad_parts, grad_last = by_feature(grad_weights)
        for rows in chunks(len(kept_N), PAIRS):
            pair_R = kept_N[rows]
            grad_RC = _layer_norm_backward(
                gradients[0].index_select(0, pair_R), out_PC.index_select(0, pair_R)
            )
            grad_RC *= deviation_N[rows]
            grad_RC = _layers_backward(grad_RC, sum_NC[rows], last, grad_last, ctx.eps)
            grad_table.index_add_(0, entry_P.index_select(0, pair_R), grad_RC)
            values = feature_PF.index_select(0, pair_R).split(ctx.widths, dim=1)
            for value_RF, kept_NC, part, grads in zip(
                values, first_NC, parts, grad_parts, strict=True
            ):
                first_RC = _layers_backward(grad_RC, kept_NC[rows], part[3:], grads[3:], ctx.eps)
                wave_RW = waves(value_RF, part[0])
                add_product(grads[1], first_RC.t(), wave_RW.t())
                grads[2].add_(first_RC.sum(dim=0))
                bands = part[0].shape[1]
                grad_RW = product(first_RC, part[1].t())
                phase = grad_RW[:, bands : 2 * bands] * wave_RW[:, :bands]
                phase -= grad_RW[:, :bands] * wave_RW[:, bands : 2 * bands]
                grads[0].addmm_(value_RF.t(), phase, alpha=2 * torch.pi)
        return None, None, grad_table, None, None, None, *grad_weights


class _Attention(torch.autograd.Function):
    """See `attention`. Heads are rows of products over all channels, with zeros in those of other heads."""

    @staticmethod
    def forward(
        ctx: Any,
        query_QHD: Tensor,
        sources_N2C: Tensor,
        relation_QKC: Tensor,
        to_key_HDC: Tensor,
        to_value_HDC: Tensor,
        index_QK: Tensor,
        mask_QK: Tensor,
    ) -> Tensor:
        queries, neighbours = index_QK.shape
        heads, width = query_QHD.shape[1:]
        size = max(1, PAIRS // neighbours)
        weight_QHK = query_QHD.new_empty(queries, heads, neighbours)
        out_QHD = torch.empty_like(query_QHD)
        spread = query_QHD.new_zeros(size, heads, heads, width)
        for rows in chunks(queries, size):
            query, relation = query_QHD[rows], relation_QKC[rows]
            key, value = _gathered(sources_N2C, index_QK[rows])
            own = _spread(query, spread)
            score = torch.bmm(_by_head(query, to_key_HDC), relation.mT).baddbmm_(own, key.mT)
            score.masked_fill_(~mask_QK[rows, None], -1e4)
            weight = torch.softmax(score, dim=-1, out=weight_QHK[rows])
            weight *= mask_QK[rows, None]
            seen = torch.bmm(torch.bmm(weight, relation).transpose(0, 1), to_value_HDC.mT)
            found = _own(torch.bmm(weight, value), width)
            torch.add(found, seen.transpose(0, 1), out=out_QHD[rows])
        ctx.save_for_backward(
            query_QHD, sources_N2C, relation_QKC, to_key_HDC, to_value_HDC, index_QK, weight_QHK
        )
        return out_QHD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_QHD, sources_N2C, relation_QKC, to_key_HDC, to_value_HDC, index_QK, weight_QHK = (
            ctx.saved_tensors
        )
        queries, neighbours = index_QK.shape
        heads, width = query_QHD.shape[1:]
        size = max(1, PAIRS // neighbours)
        grad_query, grad_relation = torch.empty_like(query_QHD), torch.empty_like(relation_QKC)
        grad_sources = torch.zeros_like(sources_N2C)
        # First what belongs to weights and values, then what belongs to scores and keys.
        factor_GDC = torch.cat([to_value_HDC, to_key_HDC])
        grad_factor = torch.zeros_like(factor_GDC)
        spread = query_QHD.new_zeros(size, 2, heads, 2, heads, width)
        for rows in chunks(queries, size):
            query, relation, weight = query_QHD[rows], relation_QKC[rows], weight_QHK[rows]
            grad = gradients[0][rows]
            key, value = _gathered(sources_N2C, index_QK[rows])
            both = torch.cat([grad, query], dim=1)
            side = _by_head(both, factor_GDC)
            _spread(query, spread[:, 1, :, 0])
            own = _spread(grad, spread[:, 0, :, 1])
            grad_weight = torch.bmm(side[:, :heads], relation.mT).baddbmm_(own, value.mT)
            score = torch._softmax_backward_data(grad_weight, weight, -1, weight.dtype)
            factor = torch.cat([weight, score], dim=1)
            torch.bmm(factor.mT, side, out=grad_relation[rows])
            pair = torch.bmm(factor.mT, spread[: len(key)].view(len(key), 2 * heads, -1))
            grad_sources.index_add_(0, index_QK[rows].flatten(), pair.flatten(0, 1))
            seen = torch.bmm(factor, relation).transpose(0, 1)
            grad_factor.baddbmm_(both.permute(1, 2, 0), seen)
            found = _own(torch.bmm(score, key), width)
            to_query = torch.bmm(seen[heads:], to_key_HDC.mT).transpose(0, 1)
            torch.add(found, to_query, out=grad_query[rows])
        grad_value, grad_key = grad_factor.chunk(2)
        return grad_query, grad_sources, grad_relation, grad_key, grad_value, None, None


class _Kernels(torch.autograd.Function):
    """See `attention`."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        query_QHD, sources_N2C, *others = given
        about = kernels.Given(query_QHD, [sources_N2C], *others)
        out_QHD, weight_QKH = kernels.attention(about, kept=True)
        ctx.save_for_backward(*given, weight_QKH)
        return out_QHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_QHD, sources_N2C, *others, weight_QKH = ctx.saved_tensors
        about = kernels.Given(query_QHD, [sources_N2C], *others)
        given = (about, weight_QKH, gradients[0].contiguous())
        return *kernels.attention_gradients(*given), None, None


def by_feature(tensors: Sequence[Tensor]) -> tuple[list[Sequence[Tensor]], Sequence[Tensor]]:
    """Weights, or gradients, of each feature and of the last layers."""
    return [tensors[at : at + 7] for at in range(0, len(tensors) - 4, 7)], tensors[-4:]


def chunks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size``."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def waves(value_RF: Tensor, frequency_FB: Tensor) -> Tensor:
    """Cosines and sines of a feature, and the feature itself."""
    bands, width = frequency_FB.shape[1], value_RF.shape[1]
    wave = value_RF.new_empty(len(value_RF), 2 * bands + width)
    phase = value_RF[:, :1] * frequency_FB[0]
    for number in range(1, width):
        phase.addcmul_(value_RF[:, number : number + 1], frequency_FB[number])
    phase *= 2 * torch.pi
    torch.cos(phase, out=wave[:, :bands])
    torch.sin(phase, out=wave[:, bands : 2 * bands])
    wave[:, 2 * bands :] = value_RF
    return wave


def rectified(x_RC: Tensor, layers: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised and rectified values; mean and reciprocal deviation of each row."""
    scale, shift, *_ = layers
    y_RC, mean, deviation = torch.native_layer_norm(x_RC, x_RC.shape[1:], scale, shift, eps)
    return y_RC.relu_(), mean, deviation


def _layers_backward(
    gradient_RC: Tensor,
    x_RC: Tensor,
    layers: Sequence[Tensor],
    totals: Sequence[Tensor],
    eps: float,
) -> Tensor:
    """Gradient of the input of normalisation, ReLU and linear layer; those of weights are added up."""
    scale, shift, weight, _ = layers
    y_RC, mean, deviation = rectified(x_RC, layers, eps)
    add_product(totals[2], gradient_RC.t(), y_RC.t())
    totals[3].add_(gradient_RC.sum(dim=0))
    inner = torch.ops.aten.threshold_backward(product(gradient_RC, weight.t()), y_RC, 0)
    gradient, *sums = torch.ops.aten.native_layer_norm_backward(
        inner, x_RC, x_RC.shape[1:], mean, deviation, scale, shift, [True] * 3
    )
    totals[0].add_(sums[0])
    totals[1].add_(sums[1])
    return gradient


def _layer_norm_backward(gradient_RC: Tensor, normed_RC: Tensor) -> Tensor:
    """Gradient of what was normalised, but for the factor of its reciprocal deviation."""
    zero, one = (make(len(normed_RC), 1) for make in (normed_RC.new_zeros, normed_RC.new_ones))
    return torch.ops.aten.native_layer_norm_backward(
        gradient_RC, normed_RC, normed_RC.shape[1:], zero, one, None, None, [True, False, False]
    )[0]


def _gathered(sources_N2C: Tensor, index_QK: Tensor) -> tuple[Tensor, ...]:
    """Keys and values of neighbours, [Q, K, C]."""
    found = sources_N2C.index_select(0, index_QK.flatten())
    return found.view(*index_QK.shape, -1).chunk(2, dim=-1)


def _spread(x_QHD: Tensor, into: Tensor) -> Tensor:
    """Write rows of heads, [Q, H, C], among zeros in the channels of other heads."""
    into = into[: len(x_QHD)]
    into.diagonal(dim1=1, dim2=2).copy_(x_QHD.mT)
    return into.flatten(2)


def _own(x_QHC: Tensor, width: int) -> Tensor:
    """Of each head's row the channels of that head, [Q, H, D]."""
    return x_QHC.unflatten(2, (-1, width)).diagonal(dim1=1, dim2=2).transpose(1, 2)


def _by_head(x_QHD: Tensor, weight_HDC: Tensor) -> Tensor:
    """Products with a matrix for each head, [Q, H, C]."""
    return torch.bmm(x_QHD.transpose(0, 1), weight_HDC).transpose(0, 1)
