"""Layers of SMART: Fourier embedding of relations, and attention over neighbours with relative positions.

Neighbours are gathered into dense rows, with a mask where there are fewer.

Shape suffixes: Q queries, N sources, K neighbours of a query, H heads, D channels of a head, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Neighbours(NamedTuple):
    """Who is near whom."""

    index_QK: Tensor
    """int64: sources of each query."""
    mask_QK: Tensor
    """bool: those that count."""
    relation_QKC: Tensor
    """Embedding of where the source is, as seen from the query; normalised."""


class FourierEmbedding(nn.Module):
    """Embed a few continuous features: sines and cosines of learned frequencies, one MLP for each, summed.

    Parameters
    ----------
    widths : tuple of int
        Numbers that make up each feature: 1, or 2 for an angle given by its cosine and sine, so that
        nothing jumps where the angle goes from π to -π.
    hidden, bands : int
    """

    def __init__(self, widths: tuple[int, ...], hidden: int, bands: int) -> None:
        super().__init__()
        self.widths = widths
        self.frequencies = nn.ParameterList(torch.randn(width, bands) for width in widths)
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2 * bands + width, hidden),
                nn.LayerNorm(hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
            )
            for width in widths
        )
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden))

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


class RelativeAttention(nn.Module):
    """Attention with relations in keys and values, a gate, and a feed-forward layer of width 4 C.

    k = W_k x_j + W_kr r_ij and v = W_v x_j + W_vr r_ij; with a the attention's result, the update is
    a + sigmoid(W_g [a, x]) (W_s x - a).

    The relations are many (Q times K): instead of W_kr r_ij, the query is carried back by W_kr; and W_vr
    is applied to the weighted sum of the relations. Both are the same by linearity and cost K times less.

    Parameters
    ----------
    hidden, heads : int
    two_sided : bool
        Queries and sources are of different kinds, and normalised each by itself.
    """

    def __init__(self, hidden: int, heads: int, two_sided: bool = False) -> None:
        super().__init__()
        self.heads, self.width = heads, hidden // heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden)
        self.relation_key = nn.Linear(hidden, hidden, bias=False)
        self.relation_value = nn.Linear(hidden, hidden, bias=False)
        self.skip = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(2 * hidden, hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm_query = nn.LayerNorm(hidden)
        self.norm_source = nn.LayerNorm(hidden) if two_sided else self.norm_query
        self.norm_out = nn.LayerNorm(hidden)
        self.norm_before = nn.LayerNorm(hidden)
        self.norm_after = nn.LayerNorm(hidden)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.ReLU(), nn.Linear(4 * hidden, hidden)
        )

    def sources(self, x_NC: Tensor) -> Tensor:
        """Keys and values of sources, [N, 2 C]: what a cache keeps."""
        x_NC = self.norm_source(x_NC)
        return torch.cat([self.key(x_NC), self.value(x_NC)], dim=-1)

    def forward(self, x_QC: Tensor, sources_N2C: Tensor, near: Neighbours) -> Tensor:
        """Update queries; one without neighbours attends to nothing."""
        normed_QC = self.norm_query(x_QC)
        found_QC = self._attend(normed_QC, sources_N2C, near)
        gate_QC = torch.sigmoid(self.gate(torch.cat([found_QC, normed_QC], dim=-1)))
        found_QC = found_QC + gate_QC * (self.skip(normed_QC) - found_QC)
        x_QC = x_QC + self.norm_out(self.out(found_QC))
        return x_QC + self.norm_after(self.feed_forward(self.norm_before(x_QC)))

    def _attend(self, x_QC: Tensor, sources_N2C: Tensor, near: Neighbours) -> Tensor:
        relation_QKC = near.relation_QKC.to(sources_N2C.dtype)
        n_queries, n_near = near.index_QK.shape
        gathered = sources_N2C.index_select(0, near.index_QK.flatten())
        key, value = gathered.view(n_queries, n_near, 2, self.heads, self.width).unbind(2)
        query_QHD = self.query(x_QC).view(n_queries, self.heads, self.width)
        query_QHD = query_QHD * self.width**-0.5
        back = self.relation_key.weight.view(self.heads, self.width, -1).to(query_QHD.dtype)
        back_QHC = torch.einsum("qhd,hdc->qhc", query_QHD, back)
        score_QHK = torch.einsum("qhd,qkhd->qhk", query_QHD, key)
        score_QHK = score_QHK + back_QHC @ relation_QKC.transpose(1, 2)
        score_QHK = score_QHK.masked_fill(~near.mask_QK[:, None], -1e4)
        weight_QHK = functional.softmax(score_QHK, dim=-1) * near.mask_QK[:, None]
        weight_QHK = weight_QHK.to(value.dtype)
        found_QHD = torch.einsum("qhk,qkhd->qhd", weight_QHK, value)
        forth = self.relation_value.weight.view(self.heads, self.width, -1).to(value.dtype)
        found_QHD = found_QHD + torch.einsum("qhc,hdc->qhd", weight_QHK @ relation_QKC, forth)
        return found_QHD.flatten(1)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def nearest(
    query_BQ2: Tensor, source_BN2: Tensor, allowed: Tensor, count: int, radius: float
) -> tuple[Tensor, Tensor]:
    """Sources nearest to each query, within a radius (m).

    Parameters
    ----------
    query_BQ2, source_BN2 : Tensor
    allowed : Tensor
        bool, broadcast to [B, Q, N].
    count : int
        Neighbours at most.
    radius : float

    Returns
    -------
    index, mask
        int64 and bool, both [B, Q, K].
    """
    # The matrix form of cdist depends on what else is in the batch, by rounding.
    apart = torch.cdist(query_BQ2, source_BN2, compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.masked_fill(~allowed.expand_as(apart), torch.inf)
    # Maps are full of equal distances: the first in order wins, whatever else is in the batch.
    order = apart + 1e-5 * torch.arange(apart.shape[-1], device=apart.device, dtype=apart.dtype)
    index = order.topk(min(count, apart.shape[-1]), dim=-1, largest=False).indices
    distance = apart.gather(-1, index)
    # Pieces of five metres often lie at the radius itself: rounding must not decide.
    return index, distance <= radius * (1 + 1e-4)


def relations(query_Q3: Tensor, source_Q3: Tensor) -> Tensor:
    """Where sources are as seen from queries: distance (10 m), bearing and turn by cosine and sine.

    The bearing fades out below 0.1 m, where it means nothing.

    Parameters
    ----------
    query_Q3, source_Q3 : Tensor
        x, y (m), heading; same or broadcast shape [..., 3].

    Returns
    -------
    Tensor
        [..., 5].
    """
    dx, dy = (source_Q3[..., :2] - query_Q3[..., :2]).unbind(-1)
    c, s = query_Q3[..., 2].cos(), query_Q3[..., 2].sin()
    along, across = c * dx + s * dy, c * dy - s * dx
    far = (dx.square() + dy.square() + 1e-2).sqrt()
    turn = source_Q3[..., 2] - query_Q3[..., 2]
    parts = (far / 10, along / far, across / far, turn.cos(), turn.sin())
    return torch.stack(torch.broadcast_tensors(*parts), dim=-1)
