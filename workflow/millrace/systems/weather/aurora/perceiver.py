"""Encoder and decoder between states on pressure levels and latent levels.

Perceivers (Jaegle et al. 2021, arXiv:2103.03206) in the form of Bodnar et al. 2025 (Nature 641).

Shape suffixes: B samples, T past steps, S surface variables, A atmospheric variables, F static fields,
L pressure levels, P latent levels of the air, N patches, D channels, K cells of a patch, I x J cells.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace.models.norms import LayerNorm
from millrace.models.products import Linear
from millrace.systems.weather.aurora.config import AuroraConfig
from millrace.systems.weather.aurora.encodings import ABSOLUTE_TIME, LEAD_TIME, PRESSURE, fourier
from millrace.systems.weather.aurora.swin import Mlp

PATCHES_AT_ONCE = 8192
"""Patches of the grid that a `CrossAttention` takes together. With recomputed activations the backward pass
holds those of so many: at 0.25 degrees an eighth of them, which took most of a GPU's memory."""


@dataclass(frozen=True)
class Grid:
    """What the model knows of its grid."""

    position_ND: Tensor
    scale_ND: Tensor
    """Both of `millrace.systems.weather.aurora.encodings.place_encodings`."""
    level_L: Tensor
    """hPa."""
    static_FIJ: Tensor
    """Normalised fields that do not change."""
    surface: int
    air: int
    """Numbers of variables S and A."""
    hours: float
    """Length of a step."""
    periodic: bool = True
    """Whether the last column is beside the first one, as it is not in an area."""
    to_published_2C: Tensor | None = None
    """Factor and offset of channels, if the network works on fields as published weights have them."""


class CrossAttention(nn.Module):
    """Queries look at a context, then an MLP; both are normalised after and added."""

    def __init__(self, channels: int, heads: int, mlp_ratio: float, normalise: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_kv = Linear(channels, 2 * channels, bias=False)
        self.to_out = Linear(channels, channels, bias=False)
        self.norm_q = LayerNorm(channels) if normalise else nn.Identity()
        # The same shift of all keys changes no weight of the attention: a bias could not learn.
        self.norm_k = LayerNorm(channels, bias=False) if normalise else nn.Identity()
        self.norm1 = LayerNorm(channels)
        self.mlp = Mlp(channels, int(mlp_ratio * channels))
        self.norm2 = LayerNorm(channels)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """[..., Q, D] and [..., C, D] -> [..., Q, D]."""
        k, v = self.to_kv(context).chunk(2, dim=-1)
        q, k = self.norm_q(self.to_q(query)), self.norm_k(k)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
        query = query + self.norm1(self.to_out(y))
        return query + self.norm2(self.mlp(query))


def _in_chunks(layer: nn.Module, query: Tensor, context: Tensor) -> Tensor:
    """Apply a `CrossAttention` to `PATCHES_AT_ONCE` at a time; patches do not see each other in it."""
    if torch.compiler.is_exporting():  # of any number of samples, without gradients
        return layer(query, context)
    pairs = zip(query.split(PATCHES_AT_ONCE), context.split(PATCHES_AT_ONCE), strict=True)
    made = [layer(*pair) for pair in pairs]
    return made[0] if len(made) == 1 else torch.cat(made)


class Encoder(nn.Module):
    """States of a few steps -> tokens of the latent levels, and the embedding of time."""

    position_ND: Tensor
    scale_ND: Tensor
    level_LD: Tensor
    static_FIJ: Tensor

    def __init__(self, config: AuroraConfig, grid: Grid, steps: int) -> None:
        super().__init__()
        width, self.patch = config.embed_dim, config.patch_size
        self.surface, self.air, self.hours = grid.surface, grid.air, grid.hours
        values, n_fields = steps * self.patch**2, grid.surface + len(grid.static_FIJ)
        self.surface_tokens = Linear(n_fields * values, width)
        self.air_tokens = Linear(grid.air * values, width)
        self.surface_level = nn.Parameter(0.02 * torch.randn(width))
        self.surface_mlp = Mlp(width, int(config.mlp_ratio * width))
        self.surface_norm = LayerNorm(width)
        self.latents_PD = nn.Parameter(0.02 * torch.randn(config.latent_levels - 1, width))
        self.aggregation = CrossAttention(
            width, config.perceiver_heads, config.mlp_ratio, config.stabilise_level_agg
        )
        names = ("position", "scale", "level", "lead_time", "absolute_time")
        self.embedding = nn.ModuleDict({name: Linear(width, width) for name in names})
        self.time_mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        for name in ("position_ND", "scale_ND", "static_FIJ"):
            self.register_buffer(name, getattr(grid, name), persistent=False)
        level_LD = fourier(grid.level_L, PRESSURE, width).float()
        self.register_buffer("level_LD", level_LD, persistent=False)

    def forward(self, past_BTCIJ: Tensor, hours_B: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens latent level by latent level, the surface first, [B, N, D]; embedding of time, [B, D].

        States are normalised, surface variables first, then each variable of the air level by level.
        ``hours_B`` is the time of the last of them in hours, float64.
        """
        surface, air = past_BTCIJ[:, :, : self.surface], past_BTCIJ[:, :, self.surface :]
        batch, steps = surface.shape[:2]
        static = self.static_FIJ.expand(batch, steps, *self.static_FIJ.shape)
        surface_BND = self.surface_tokens(patches(torch.cat([surface, static], 2), self.patch))
        surface_BND = surface_BND + self.surface_level
        surface_BND = surface_BND + self.surface_norm(self.surface_mlp(surface_BND))

        air_BLTAIJ = air.unflatten(2, (self.air, -1)).permute(0, 3, 1, 2, 4, 5)
        levels = air_BLTAIJ.shape[1]
        air_MND = self.air_tokens(patches(air_BLTAIJ.flatten(0, 1), self.patch))
        air_BLND = air_MND.unflatten(0, (batch, levels))
        air_BLND = air_BLND + self._embed("level", self.level_LD)[:, None]
        air_MLD = air_BLND.transpose(1, 2).flatten(0, 1)
        query_MPD = self.latents_PD.expand(air_MLD.shape[0], *self.latents_PD.shape)
        latents_MPD = _in_chunks(self.aggregation, query_MPD, air_MLD)
        latents_BPND = latents_MPD.unflatten(0, (batch, -1)).transpose(1, 2)

        x_BCND = torch.cat([surface_BND[:, None], latents_BPND], dim=1)
        x_BCND = x_BCND + self._embed("position", self.position_ND)
        x_BCND = x_BCND + self._embed("scale", self.scale_ND)
        width = x_BCND.shape[-1]
        lead = fourier(torch.full_like(hours_B, self.hours), LEAD_TIME, width)
        absolute = fourier(hours_B, ABSOLUTE_TIME, width)
        x_BCND = x_BCND + self._embed("lead_time", lead)[:, None, None]
        # Added last: FSDP wants no views of other tensors, which `flatten` gives.
        x_BND = x_BCND.flatten(1, 2) + self._embed("absolute_time", absolute)[:, None]
        context_BD = self.time_mlp(lead.to(self.surface_level.dtype))
        return x_BND, context_BD

    def _embed(self, name: str, encoding: Tensor) -> Tensor:
        return self.embedding[name](encoding.to(self.surface_level.dtype))


class Decoder(nn.Module):
    """Tokens of the latent levels -> one state, in normalised units."""

    level_LD: Tensor

    def __init__(self, config: AuroraConfig, grid: Grid, rows: int) -> None:
        super().__init__()
        width, self.patch = 2 * config.embed_dim, config.patch_size
        self.latent_levels, self.rows = config.latent_levels, rows
        self.level = Linear(width, width)
        self.aggregation = CrossAttention(
            width, config.perceiver_heads, config.mlp_ratio / 2, False
        )
        self.surface_head = Linear(width, grid.surface * self.patch**2)
        self.air_head = Linear(width, grid.air * self.patch**2)
        level_LD = fourier(grid.level_L, PRESSURE, width).float()
        self.register_buffer("level_LD", level_LD, persistent=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """State of the next step, [B, C, I, J]."""
        x_BCND = x_BND.unflatten(1, (self.latent_levels, -1))
        surface = unpatched(self.surface_head(x_BCND[:, 0]), self.patch, self.rows)
        context_MPD = x_BCND[:, 1:].transpose(1, 2).flatten(0, 1)
        query_LD = self.level(self.level_LD.to(self.level.weight.dtype))
        query_MLD = query_LD.expand(context_MPD.shape[0], *query_LD.shape)
        air_MLK = self.air_head(_in_chunks(self.aggregation, query_MLD, context_MPD))
        air_BLNK = air_MLK.unflatten(0, (x_BND.shape[0], -1)).transpose(1, 2)
        air_BLAIJ = unpatched(air_BLNK.flatten(0, 1), self.patch, self.rows)
        air_BALIJ = air_BLAIJ.unflatten(0, (x_BND.shape[0], -1)).transpose(1, 2)
        return torch.cat([surface, air_BALIJ.flatten(1, 2)], dim=1)


def patches(x_BTVIJ: Tensor, patch: int) -> Tensor:
    """Cells of each patch as a vector, [B, N, T * V * K]."""
    x = x_BTVIJ.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return x.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)


def unpatched(x_BNK: Tensor, patch: int, rows: int) -> Tensor:
    """Vectors of variables x cells back to fields, [B, V, I, J]."""
    x = x_BNK.unflatten(2, (-1, patch, patch)).unflatten(1, (rows, -1))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
