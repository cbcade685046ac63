"""Layers of SMART: Fourier embedding of relative positions, and attention to neighbours.

The neighbours of each query are gathered into dense rows, with a mask where there are fewer.

Shape suffixes: B scenarios, Q queries, N sources (whose keys and values are attended to), K neighbours of a
query, H heads, D channels of a head, C channels.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from millrace.models.products import Linear
from millrace.systems.traffic.smart import chunked, tabulated


class Neighbours(NamedTuple):
    """The sources that each query attends to."""

    index_QK: Tensor
    """int64: numbers of the sources."""
    mask_QK: Tensor
    """bool: False where there are fewer than K neighbours."""
    relation_QKC: Tensor
    """Embedding of the source's position relative to the query; normalised."""
    parts: tuple[chunked.Part, ...] = ()
    """For `chunked.grouped_attention`: rows of the above are in their order; empty: in that of queries."""


class FourierEmbedding(nn.Module):
    """Embedding of a few continuous features: an MLP of sines and cosines for each feature, summed.

    Parameters
    ----------
    widths : tuple of int
        Numbers that make up each feature: 1, or 2 for an angle given by its cosine and sine, which are
        continuous where the angle goes from π to -π.
    hidden : int
        Channels of the embedding.
    bands : int
        Learned frequencies of each feature.
    """

    def __init__(self, widths: tuple[int, ...], hidden: int, bands: int) -> None:
        super().__init__()
        self.widths = widths
        self.frequencies = nn.ParameterList(torch.randn(width, bands) for width in widths)
        self.mlps = nn.ModuleList(
            nn.Sequential(
                Linear(2 * bands + width, hidden),
                nn.LayerNorm(hidden),
                nn.ReLU(),
                Linear(hidden, hidden),
            )
            for width in widths
        )
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), Linear(hidden, hidden))

    def forward(self, features: Tensor, extra: Tensor | None = None) -> Tensor:
        """Embed [..., sum of widths] to [..., hidden]; ``extra`` is added to the sum of the MLPs."""
        total = extra
        for part, frequency, mlp in zip(
            features.split(self.widths, dim=-1), self.frequencies, self.mlps, strict=True
        ):
            phase = (part.unsqueeze(-1) * frequency).sum(dim=-2) * (2 * torch.pi)
            value = mlp(torch.cat([phase.cos(), phase.sin(), part], dim=-1))
            total = value if total is None else total + value
        return self.out(total)

    def pairs(
        self,
        feature_QKF: Tensor,
        mask_QK: Tensor,
        extra: tuple[Tensor, Tensor] | None = None,
        tables: tabulated.Tables | None = None,
    ) -> Tensor:
        """Normalised embeddings of pairs, [Q, K, C]; any finite values where the mask is False.

        ``extra`` is added to the sum of the MLPs: a table, [T, C], and numbers of its rows, int64[Q, K].
        ``tables`` are those of `tabulated`, of the same table.
        """
        if not chunked.applies(feature_QKF):
            row = None if extra is None else functional.embedding(extra[1], extra[0])
            embedded = self(feature_QKF, row)
            return functional.layer_norm(embedded, embedded.shape[-1:])
        if extra is None:
            extra = self._nothing(), torch.zeros_like(mask_QK, dtype=torch.int64)
        table, entry = extra[0], extra[1].flatten()
        feature, mask = feature_QKF.flatten(0, 1), mask_QK.flatten()
        weights = self._weights()
        about = (self.widths, self._eps, weights)
        if torch.is_grad_enabled():
            embedded = chunked.relations(feature, mask, table, entry, *about)
        else:
            tables = tables or tabulated.Tables.without_curves(table, weights)
            embedded = tabulated.relations(feature, mask, entry, *about, tables)
        return embedded.unflatten(0, mask_QK.shape)

    def tables(
        self, extents: Sequence[float | None], table_TC: Tensor | None = None
    ) -> tabulated.Tables | None:
        """Tables for `pairs`, see `tabulated.tabulate`; None where they are of no use."""
        table_TC = self._nothing() if table_TC is None else table_TC
        single = table_TC.dtype == torch.float32
        if torch.is_grad_enabled() or not single or not chunked.applies(table_TC):
            return None
        return tabulated.tabulate(table_TC, extents, self._eps, self._weights())

    @property
    def _eps(self) -> float:
        return cast(nn.LayerNorm, self.out[0]).eps

    def _nothing(self) -> Tensor:
        return self.frequencies[0].new_zeros(1, len(next(self.out.parameters())))

    def _weights(self) -> list[Tensor]:
        """As in `chunked.relations`."""
        weights: list[Tensor] = [*self.out.parameters()]
        for frequency, mlp in reversed([*zip(self.frequencies, self.mlps, strict=True)]):
            weights = [frequency, *mlp.parameters(), *weights]
        return weights


class RelativeAttention(nn.Module):
    """Attention with relations in keys and values, a gate, and a feed-forward layer of width 4 C.

    k = W_k x_j + W_kr r_ij and v = W_v x_j + W_vr r_ij; with a the attention's result, the update is
    a + sigmoid(W_g [a, x]) (W_s x - a).

    There are Q times K relations r. Instead of W_kr r_ij, the query is multiplied by the transpose of W_kr;
    and W_vr is applied to the weighted sum of the relations. Both are the same by linearity, and cost K
    times less.

    Parameters
    ----------
    hidden : int
        Channels.
    heads : int
    two_sided : bool
        Queries and sources come from different embeddings, and have normalisations of their own.
    """

    def __init__(self, hidden: int, heads: int, two_sided: bool = False) -> None:
        super().__init__()
        self.heads, self.width = heads, hidden // heads
        self.query = Linear(hidden, hidden)
        self.key = Linear(hidden, hidden, bias=False)
        self.value = Linear(hidden, hidden)
        self.relation_key = Linear(hidden, hidden, bias=False)
        self.relation_value = Linear(hidden, hidden, bias=False)
        self.skip = Linear(hidden, hidden)
        self.gate = Linear(2 * hidden, hidden)
        self.out = Linear(hidden, hidden)
        self.norm_query = nn.LayerNorm(hidden)
        self.norm_source = nn.LayerNorm(hidden) if two_sided else self.norm_query
        self.norm_out = nn.LayerNorm(hidden)
        self.norm_before = nn.LayerNorm(hidden)
        self.norm_after = nn.LayerNorm(hidden)
        self.feed_forward = nn.Sequential(
            Linear(hidden, 4 * hidden), nn.ReLU(inplace=True), Linear(4 * hidden, hidden)
        )

    def sources(self, x_NC: Tensor) -> Tensor:
        """Keys and values of sources, [N, 2 C]."""
        x_NC = self.norm_source(x_NC)
        return torch.cat([self.key(x_NC), self.value(x_NC)], dim=-1)

    def forward(self, x_QC: Tensor, sources_N2C: Tensor | list[Tensor], near: Neighbours) -> Tensor:
        """Update queries, [Q, C]; one without neighbours attends to nothing."""
        normed_QC = self.norm_query(x_QC)
        found_QC = self.attend(normed_QC, sources_N2C, near)
        gate_QC = torch.sigmoid(self.gate(torch.cat([found_QC, normed_QC], dim=-1)))
        found_QC = found_QC + gate_QC * (self.skip(normed_QC) - found_QC)
        x_QC = x_QC + self.norm_out(self.out(found_QC))
        return x_QC + self.norm_after(self.feed_forward(self.norm_before(x_QC)))

    def attend(self, x_QC: Tensor, sources_N2C: Tensor | list[Tensor], near: Neighbours) -> Tensor:
        """Attention of each query to its K neighbours among the sources, [Q, C].

        In K tensors of sources its neighbours are the rows with the number of the query.
        """
        heads, eager = (self.heads, self.width), chunked.applies(x_QC)
        query_QHD = self.query(x_QC).view(-1, *heads) * self.width**-0.5
        relation_QKC = near.relation_QKC.to(query_QHD.dtype)
        both = (self.relation_key.weight, self.relation_value.weight)
        to_key, to_value = (weight.view(*heads, -1).to(query_QHD.dtype) for weight in both)
        if isinstance(sources_N2C, list):
            if eager and not torch.is_grad_enabled():
                about = (to_key, to_value, near.mask_QK, relation_QKC)
                return chunked.attention_over_steps(query_QHD, sources_N2C, *about).flatten(1)
            sources_N2C = torch.stack(sources_N2C, dim=1).flatten(0, 1)
        if eager:
            given = (query_QHD, sources_N2C, to_key, to_value)
            if near.parts:
                pairs = near.mask_QK, relation_QKC, near.parts
                return chunked.grouped_attention(*given, *pairs).flatten(1)
            return chunked.attention(*given, *near[:2], relation_QKC).flatten(1)
        gathered = sources_N2C.index_select(0, near.index_QK.flatten())
        key, value = gathered.view(*near.index_QK.shape, 2, *heads).unbind(2)
        back_QHC = torch.einsum("qhd,hdc->qhc", query_QHD, to_key)
        score_QHK = torch.einsum("qhd,qkhd->qhk", query_QHD, key)
        score_QHK = score_QHK + back_QHC @ relation_QKC.transpose(1, 2)
        score_QHK = score_QHK.masked_fill(~near.mask_QK[:, None], -1e4)
        weight_QHK = functional.softmax(score_QHK, dim=-1) * near.mask_QK[:, None]
        weight_QHK = weight_QHK.to(value.dtype)
        found_QHD = torch.einsum("qhk,qkhd->qhd", weight_QHK, value)
        found_QHD = found_QHD + torch.einsum("qhc,hdc->qhd", weight_QHK @ relation_QKC, to_value)
        return found_QHD.flatten(1)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers, with normalisation and ReLU between them."""
    return nn.Sequential(
        Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), Linear(hidden, outputs)
    )


def nearest_neighbours(
    query_BQ2: Tensor, source_BN2: Tensor, allowed: Tensor, count: int, radius: float
) -> tuple[Tensor, Tensor]:
    """Find the sources nearest to each query, at most ``count``, within a radius (m).

    Parameters
    ----------
    query_BQ2, source_BN2 : Tensor
        x, y (m).
    allowed : Tensor
        bool, broadcast to [B, Q, N]: which sources count for which query.
    count : int
    radius : float

    Returns
    -------
    index, mask
        int64 numbers of the sources and bool, False where there are fewer; both [B, Q, K].
    """
    # In the matrix form of cdist, rounding depends on the other scenarios of the batch.
    apart = torch.cdist(query_BQ2, source_BN2, compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.masked_fill(~allowed.expand_as(apart), torch.inf)
    # Maps have many equal distances: the first in order wins, whatever else is in the batch.
    order = apart + 1e-5 * torch.arange(apart.shape[-1], device=apart.device, dtype=apart.dtype)
    index = order.topk(min(count, apart.shape[-1]), dim=-1, largest=False).indices
    distance = apart.gather(-1, index)
    # Road segments of five metres often lie at the radius itself: rounding must not decide.
    return index, distance <= radius * (1 + 1e-4)


def relative_positions(query_Q3: Tensor, source_Q3: Tensor) -> Tensor:
    """Positions of sources relative to queries, [..., 5]; poses x, y (m), heading (rad) [..., 3] broadcast.

    They are the distance (in 10 m), and cosine and sine of the bearing and of the difference in heading.
    The bearing fades out below 0.1 m, where it has no meaning.
    """
    dx, dy = (source_Q3[..., :2] - query_Q3[..., :2]).unbind(-1)
    c, s = query_Q3[..., 2].cos(), query_Q3[..., 2].sin()
    along, across = c * dx + s * dy, c * dy - s * dx
    far = (dx.square() + dy.square() + 1e-2).sqrt()
    turn = source_Q3[..., 2] - query_Q3[..., 2]
    parts = (far / 10, along / far, across / far, turn.cos(), turn.sin())
    return torch.stack(torch.broadcast_tensors(*parts), dim=-1)
