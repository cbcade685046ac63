"""U-Net on nested triangles: pooling 4:1 along the refinement, messages along real edges on each level.

The convolution is that of Jiang et al. (2019), Spherical CNNs on Unstructured Grids (ICLR): a linear map
of a cell's value, its difference from its neighbours and its slopes to the east and the north. Pooling
keeps the first moments over the four children, and its inverse gives each child the value of a plane
at its place. Neither depends on how cells are numbered, and blocks have no seams.

Shape suffixes: N cells of a level, P of the next coarser one, B samples, C channels, E embedding.
"""

import itertools

import torch
from torch import Tensor, nn

from millrace.models.norms import LayerNorm
from millrace.models.products import Linear
from millrace.systems.downscaling.geometry import BlockGeometry, Level
from millrace.systems.downscaling.sparse import SparseMatrix


class NestedUnet(nn.Module):
    """Map features of the fine cells to fields on them.

    There are ``channels`` of each level, from the fine cells to the blocks, and ``depth`` residual layers
    of a level on the way down, and as many on the way up. A vector of size ``embedding`` modulates all
    layers; 0: there is none.
    """

    def __init__(
        self, inputs: int, outputs: int, channels: tuple[int, ...], embedding: int, depth: int
    ) -> None:
        super().__init__()
        self.lift = EdgeConv(inputs, channels[0])
        self.encoder = nn.ModuleList(_layers(size, embedding, depth) for size in channels)
        self.decoder = nn.ModuleList(_layers(size, embedding, depth) for size in channels[:-1])
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList(Linear(3 * fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(Linear(coarse, 3 * fine) for fine, coarse in pairs)
        self.norm = LayerNorm(channels[0])
        self.project = Linear(channels[0], outputs)

    def forward(self, x_BNC: Tensor, e_BE: Tensor | None, geometry: BlockGeometry) -> Tensor:
        """Fields on the fine cells, [B, N, outputs]."""
        kept = []
        h = self.lift(x_BNC, geometry.levels[0])
        for layers, down, level in zip(self.encoder, self.down, geometry.levels, strict=False):
            h = _run(layers, h, e_BE, level)
            kept.append(h)
            h = down(_grouped(level.down, h, 3))
        h = _run(self.encoder[-1], h, e_BE, geometry.levels[-1])
        levels = geometry.levels[:-1]
        for layers, up, level in reversed(list(zip(self.decoder, self.up, levels, strict=True))):
            fine = kept.pop()
            rows = up(h).reshape(fine.shape[0], -1, fine.shape[2])
            assert level.up is not None
            h = _run(layers, fine + level.up(rows), e_BE, level)
        return self.project(self.norm(h))


class EdgeConv(nn.Module):
    """Linear map of a cell's value and the differences to its neighbours, [B, N, C]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = Linear(4 * in_channels, out_channels)

    def forward(self, x_BNC: Tensor, level: Level) -> Tensor:
        """Apply on a level."""
        return self.linear(_grouped(level.differences, x_BNC, 4))


class ResidualLayer(nn.Module):
    """x + linear(silu(convolution(modulated(norm(x)))))."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.modulate = Linear(embedding, 2 * channels) if embedding else None
        self.conv = EdgeConv(channels, channels)
        self.linear = Linear(channels, channels)
        # A network that begins as nearly the identity can be deep (Goyal et al. 2017).
        nn.init.normal_(self.linear.weight, std=0.1 * channels**-0.5)

    def forward(self, x_BNC: Tensor, e_BE: Tensor | None, level: Level) -> Tensor:
        """Apply on a level."""
        h = self.norm(x_BNC)
        if self.modulate is not None:
            scale, shift = self.modulate(e_BE)[:, None].chunk(2, dim=2)
            h = torch.addcmul(h + shift, h, scale)
        return x_BNC + self.linear(nn.functional.silu(self.conv(h, level)))


def _layers(channels: int, embedding: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualLayer(channels, embedding) for _ in range(depth))


def _run(layers: nn.Module, h: Tensor, e_BE: Tensor | None, level: Level) -> Tensor:
    for layer in layers:  # type: ignore[attr-defined]
        h = layer(h, e_BE, level)
    return h


def _grouped(matrix: SparseMatrix | None, x_BNC: Tensor, per_cell: int) -> Tensor:
    """Product with a matrix of so many rows a cell, those of a cell as channels."""
    assert matrix is not None
    return matrix(x_BNC).reshape(x_BNC.shape[0], -1, per_cell * x_BNC.shape[2])
