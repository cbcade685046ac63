"""The network of the reference downscaler: each block alone, fully connected.

Context MLP to 256 -> 256, embedding of the noise level 256, denoiser 768 -> 512 -> 512 -> 256 -> cells with
ReLU, as in the plug-in that this model comes from. What is new is the context: real neighbours
instead of those next by number, and where and when the block is.

Shape suffixes: N fine cells, M blocks, B samples, L noise levels of a sample (one, or one for each block),
V variables, F features, E embedding.
"""

import itertools

import torch
from torch import Tensor, nn

from millrace.models.products import Linear
from millrace.systems.downscaling.dataset import BlockBatch, BlockDataset

WIDTH = 256


class BlockMlp(nn.Module):
    """Map the noisy cells of a block, its context and the noise level to a field."""

    def __init__(self, dataset: BlockDataset, embedding: int) -> None:
        super().__init__()
        n_variables = len(dataset.config.variables)
        values = dataset.grid.per_block * n_variables
        context = 4 * n_variables + 3 + dataset.n_clock
        self.context = nn.Sequential(
            Linear(context, WIDTH), nn.ReLU(inplace=True), Linear(WIDTH, WIDTH)
        )
        # The first layer takes three parts side by side: as three maps, that of the noise level is
        # computed once a level and not once a block.
        self.first = Linear(values, 2 * WIDTH)
        self.first_context = Linear(WIDTH, 2 * WIDTH, bias=False)
        self.first_level = Linear(embedding, 2 * WIDTH, bias=False)
        sizes = itertools.pairwise((2 * WIDTH, 2 * WIDTH, WIDTH, values))
        *hidden, last = (Linear(*size) for size in sizes)
        self.rest = nn.Sequential(
            *(one for layer in (*hidden, last) for one in (nn.ReLU(inplace=True), layer))
        )
        for layer in (self.first, self.first_context, self.first_level):
            _look_linear(layer, after_relu=False)
        for layer in hidden:
            _look_linear(layer, after_relu=True)
        nn.init.zeros_(last.weight)

    def forward(self, x_BNV: Tensor, e_BLE: Tensor, batch: BlockBatch) -> Tensor:
        """Field on the fine cells, [B, N, V]."""
        h = self.first(x_BNV.reshape(x_BNV.shape[0], batch.geometry.n_blocks, -1))
        h = h + self.first_context(self.context(context_of(batch))) + self.first_level(e_BLE)
        return self.rest(h).reshape(x_BNV.shape)


def context_of(batch: BlockBatch) -> Tensor:
    """Of each block: its means, those of its neighbours, where it is and the time, [B, M, F]."""
    n_samples, n_blocks = batch.coarse_BMV.shape[:2]
    around_BMV = batch.coarse_BMV[:, batch.geometry.block_neighbours_M3].flatten(2)
    place_BM3 = batch.geometry.block_centres_M3.expand(n_samples, -1, -1)
    clock_BMF = batch.clock_BF[:, None].expand(-1, n_blocks, -1)
    return torch.cat([batch.coarse_BMV, around_BMV, place_BM3, clock_BMF], dim=2)


@torch.no_grad()
def _look_linear(layer: nn.Linear, after_relu: bool) -> None:
    """Begin with channels in pairs of opposite sign, of which a ReLU leaves the positive one.

    Layers one after the other are then linear and keep lengths, so that a field is not lost on its way
    ("looks linear", Balduzzi et al. 2017, arXiv:1702.08591).
    """
    outputs, inputs = layer.weight.shape
    half = torch.empty(outputs // 2, inputs // 2 if after_relu else inputs)
    nn.init.orthogonal_(half)
    if after_relu:
        half = torch.cat([half, -half], dim=1)
    layer.weight.copy_(torch.cat([half, -half]))
