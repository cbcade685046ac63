"""Three-dimensional Swin blocks on latent levels x latitude x longitude.

Windows that shift are those of Liu et al. 2021 (arXiv:2103.14030), normalisation after each residual branch
that of Swin v2 (arXiv:2111.09883).

Shape suffixes: B samples, N tokens (level by level, row by row), C channels, H heads, W windows, S tokens
of a window, K channels of a head.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millrace.models.norms import LayerNorm
from millrace.models.products import Linear
from millrace.systems.weather.aurora.config import AuroraConfig

Size = tuple[int, int, int]

_MODULATION_STD = 1e-2


class AdaptiveNorm(nn.Module):
    """Layer normalisation whose scale and shift follow from the time embedding.

    It begins close to zero, so that a new network is close to the identity, and not at zero, where
    nothing behind it would learn.
    """

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.channels = channels
        self.modulation = Linear(context, 2 * channels)
        nn.init.normal_(self.modulation.weight, std=_MODULATION_STD / math.sqrt(context))
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x_BNC: Tensor, context_BD: Tensor) -> Tensor:
        """Normalise and modulate, [B, N, C]."""
        scale_BC, shift_BC = self.modulation(F.silu(context_BD)).chunk(2, dim=-1)
        normed = F.layer_norm(x_BNC, (self.channels,))
        return normed * scale_BC[:, None] + shift_BC[:, None]


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.fc2 = Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class WindowAttention(nn.Module):
    """Self-attention among the tokens of a window.

    The rows of ``qkv`` are packed as all queries, all keys, all values, each head by head. The number of
    heads is read off its output: a rank that holds some of them computes these.
    """

    def __init__(self, channels: int, heads: int, lora_rank: int) -> None:
        super().__init__()
        self.head_dim = channels // heads
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        self.lora_qkv = Lora(channels, 3 * channels, lora_rank) if lora_rank else None
        self.lora_proj = Lora(channels, channels, lora_rank) if lora_rank else None

    def forward(self, x_WSC: Tensor, mask_WSS: Tensor | None) -> Tensor:
        """Attend; ``mask_WSS`` is True where a token may look, [W, S, C]."""
        qkv = self.qkv(x_WSC)
        if self.lora_qkv is not None:
            qkv = qkv + self.lora_qkv(x_WSC)
        q, k, v = qkv.unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        if mask_WSS is not None:
            mask_WSS = mask_WSS.repeat(q.shape[0] // mask_WSS.shape[0], 1, 1)[:, None]
        y_WHSK = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_WSS)
        y_WSC = y_WHSK.transpose(1, 2).flatten(2)
        out = self.proj(y_WSC)
        return out if self.lora_proj is None else out + self.lora_proj(y_WSC)


class Lora(nn.Module):
    """Low-rank update of a linear layer, zero at first (Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = Linear(inputs, rank, bias=False)
        self.up = Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Update of the layer's output."""
        return self.up(self.down(x))


class SwinBlock(nn.Module):
    """Windowed attention and an MLP, each normalised after and added.

    ``size`` is tokens along levels, latitude, longitude; ``shifted`` windows are moved by half of theirs.
    With ``periodic`` the last longitude is beside the first one.
    """

    labels_WS: Tensor | None

    def __init__(
        self,
        config: AuroraConfig,
        channels: int,
        heads: int,
        size: Size,
        shifted: bool,
        drop_path: float,
        periodic: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.drop_path = size, drop_path
        self.as_published = config.conventions == "published"
        levels, rows, columns = (min(w, s) for w, s in zip(config.window, size, strict=True))
        self.window: Size = (levels, rows, columns)
        self.shift: Size = tuple(  # type: ignore[assignment]
            w // 2 if shifted and w < s else 0 for w, s in zip(self.window, size, strict=True)
        )
        self.attention = WindowAttention(channels, heads, config.lora_rank)
        self.norm1 = AdaptiveNorm(channels, config.embed_dim)
        self.mlp = Mlp(channels, int(config.mlp_ratio * channels))
        self.norm2 = AdaptiveNorm(channels, config.embed_dim)
        of_windows = published_labels if self.as_published else window_labels
        labels = of_windows(size, self.window, self.shift, periodic)
        tensor = None if labels is None else torch.tensor(labels, device="cpu")
        self.register_buffer("labels_WS", tensor, persistent=False)

    def forward(self, x_BNC: Tensor, context_BD: Tensor) -> Tensor:
        """Same shape."""
        x_BNC = x_BNC + self._kept(self.norm1(self._attend(x_BNC), context_BD))
        return x_BNC + self._kept(self.norm2(self.mlp(x_BNC), context_BD))

    def _attend(self, x_BNC: Tensor) -> Tensor:
        x = x_BNC.unflatten(1, self.size)
        missing = [(-s) % w for s, w in zip(self.size, self.window, strict=True)]
        before = [n // 2 if self.as_published else 0 for n in missing]
        if self.as_published:
            x = torch.roll(x, [-s for s in self.shift], (1, 2, 3))
        if any(missing):
            sides = zip(reversed(before), reversed(missing), strict=True)
            x = F.pad(x, (0, 0, *(side for b, n in sides for side in (b, n - b))))
        padded = x.shape[1:4]
        if not self.as_published:
            x = torch.roll(x, [-s for s in self.shift], (1, 2, 3))
        mask = None
        if self.labels_WS is not None:
            mask = self.labels_WS[:, :, None] == self.labels_WS[:, None, :]
        x = from_windows(self.attention(to_windows(x, self.window), mask), self.window, padded)
        if not self.as_published:
            x = torch.roll(x, self.shift, (1, 2, 3))
        (a, b, c), (levels, rows, columns) = before, self.size
        x = x[:, a : a + levels, b : b + rows, c : c + columns]
        if self.as_published:
            x = torch.roll(x, self.shift, (1, 2, 3))
        return x.flatten(1, 3)

    def _kept(self, x_BNC: Tensor) -> Tensor:
        """Leave the branch out for some samples (Huang et al. 2016, arXiv:1603.09382)."""
        if not self.training or not self.drop_path:
            return x_BNC
        keep = torch.rand(len(x_BNC), 1, 1, device=x_BNC.device) >= self.drop_path
        return x_BNC * keep / (1 - self.drop_path)


def to_windows(x: Tensor, window: Size) -> Tensor:
    """Cut [B, levels, rows, columns, C] into windows, [B * W, S, C]."""
    a, b, c = window
    x = x.unflatten(3, (-1, c)).unflatten(2, (-1, b)).unflatten(1, (-1, a))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)


def from_windows(x_WSC: Tensor, window: Size, size: tuple[int, ...]) -> Tensor:
    """Undo `to_windows`, [B, levels, rows, columns, C]."""
    counts = [s // w for s, w in zip(size, window, strict=True)]
    x = x_WSC.unflatten(0, (-1, *counts)).unflatten(4, window)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)


@lru_cache(maxsize=64)
def window_labels(
    size: Size, window: Size, shift: Size, periodic: bool = True
) -> np.ndarray | None:
    """Which tokens of a window belong together, int16[W, S]; None: all of each window.

    Shifted windows wrap around. Longitudes of the globe do too (``periodic``), so that only the levels and
    latitudes that met by wrapping are kept apart, and in an area the longitudes; what pads the grid looks
    at nothing but itself.
    """
    padded = [-(-s // w) * w for s, w in zip(size, window, strict=True)]
    label = np.zeros(padded, dtype=np.int16)
    for axis in (0, 1) if periodic else (0, 1, 2):
        if shift[axis]:
            wrapped = (np.arange(padded[axis]) < shift[axis]).astype(np.int16)
            label += np.expand_dims(wrapped << axis, tuple(a for a in range(3) if a != axis))
    levels, rows, columns = size
    inside = np.zeros(padded, dtype=bool)
    inside[:levels, :rows, :columns] = True
    label[~inside] = -1
    if (label == 0).all():
        return None
    label = np.roll(label, [-s for s in shift], (0, 1, 2))
    with torch.device("cpu"):
        return to_windows(torch.from_numpy(label)[None, ..., None], window)[..., 0].numpy()


@lru_cache(maxsize=64)
def published_labels(
    size: Size, window: Size, shift: Size, periodic: bool = True
) -> np.ndarray | None:
    """`window_labels` of the published program, which differ where windows do not divide a grid.

    It pads both sides after shifting, labels before it pads, and lets tokens look at what pads a grid where
    nothing is shifted.
    """
    if not any(shift):
        return None
    label = np.zeros(size, dtype=np.int16)
    for axis, (length, w, s) in enumerate(zip(size, window, shift, strict=True)):
        if s:
            place = np.arange(length)
            part = (place >= length - w) + 1 * (place >= length - s)
            if axis == 2 and periodic:
                part[part == 1] = 2
            others = tuple(a for a in range(3) if a != axis)
            label += np.expand_dims(3**axis * part, others).astype(np.int16)
    missing = [(-n) % w for n, w in zip(size, window, strict=True)]
    label = np.pad(label, [(n // 2, n - n // 2) for n in missing], constant_values=-1)
    with torch.device("cpu"):
        return to_windows(torch.from_numpy(label)[None, ..., None], window)[..., 0].numpy()


class PatchMerging(nn.Module):
    """Halve latitude and longitude and double the channels."""

    def __init__(self, channels: int, size: Size) -> None:
        super().__init__()
        self.size = size
        self.norm = LayerNorm(4 * channels)
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x_BNC: Tensor, _: Tensor) -> Tensor:
        """Tokens of the next coarser resolution, see `coarser`."""
        rows, columns = self.size[1:]
        x = F.pad(x_BNC.unflatten(1, self.size), (0, 0, 0, columns % 2, 0, rows % 2))
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 2, 4, 3, 5, 6)
        return self.reduction(self.norm(x.flatten(4).flatten(1, 3)))


class PatchSplitting(nn.Module):
    """Double latitude and longitude and halve the channels; ``size`` is the finer one."""

    def __init__(self, channels: int, size: Size) -> None:
        super().__init__()
        self.size = size
        self.expansion = Linear(channels, 2 * channels, bias=False)
        self.norm = LayerNorm(channels // 2)
        self.mixing = Linear(channels // 2, channels // 2, bias=False)

    def forward(self, x_BNC: Tensor, _: Tensor) -> Tensor:
        """Tokens of the next finer resolution."""
        levels, rows, columns = self.size
        x = self.expansion(x_BNC).unflatten(1, coarser(self.size)).unflatten(-1, (2, 2, -1))
        x = x.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)
        return self.mixing(self.norm(x[:, :levels, :rows, :columns].flatten(1, 3)))


def coarser(size: Size) -> Size:
    """Size after `PatchMerging`."""
    levels, rows, columns = size
    return levels, -(-rows // 2), -(-columns // 2)
