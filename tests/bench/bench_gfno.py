"""One training step of GFNO against the same layers of the library with the same weights, on one CPU core.

Variants take turns in one process; a step is forecast, loss, gradient, clipping and AdamW.

library   layers of `neuralop` 2.0.0 as they are called there, with a folded `torch.segment_reduce` in place
          of the loop over output points
millrace  real matrices for the kept modes, kernel sums over bags, cached neighbours and embeddings
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import neuralop.layers.integral_transform as integral_transform
import numpy as np
import torch
from bench_gino import segment_csr, training
from neuralop.layers.channel_mlp import ChannelMLP
from neuralop.layers.fno_block import FNOBlocks
from rows import Limits, Row, in_turns, run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from millrace.processes import keep_freed_memory
from millrace.systems.groundwater.gfno import GFNO
from millrace.systems.groundwater.gno import NeighbourTable
from millrace.systems.groundwater.graph import radius_neighbours
from millrace.systems.groundwater.plane_dataset import PlaneBatch, PlaneGeometry
from millrace.systems.groundwater.settings import GfnoConfig

VARIABLES, BOUNDARY, FEATURES = 2, 4, 8


@dataclass(frozen=True)
class Size:
    """A model, the space-time grid of its samples, and how many points of each step are on the boundary."""

    config: GfnoConfig
    grid: tuple[int, int, int]
    points: int
    samples: int = 8
    radius: float = 0.15


_SMALL = GfnoConfig(gno_channels=8, kernel_widths=(16, 16), modes=(4, 6, 6), hidden=16, layers=3)
SIZES = {
    "demo": Size(_SMALL, (8, 24, 16), points=30),
    "default": Size(GfnoConfig(), (16, 32, 32), points=60),
}


class LibraryGfno(nn.Module):
    """The layers of `GFNO` as the library calls them."""

    def __init__(self, model: GFNO, config: GfnoConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.boundary = nn.Linear(BOUNDARY, config.gno_channels)
        self.gno = model.gno
        self.lifting = ChannelMLP(config.gno_channels + FEATURES, hidden, 2 * hidden)
        self.fno_blocks = FNOBlocks(
            hidden, hidden, config.modes, n_layers=config.layers, use_channel_mlp=False
        )
        self.projection = ChannelMLP(hidden, VARIABLES, 4 * hidden)
        self.register_buffer("increment_scale_V", torch.empty(VARIABLES))
        self.load_state_dict(model.state_dict())

    def forward(self, batch: Any) -> Tensor:
        geometry = batch.geometry
        given_BNC = self.boundary(batch.x_NBC).transpose(0, 1)
        reduction = integral_transform.segment_csr
        integral_transform.segment_csr = segment_csr
        try:
            x_BGC = self.gno(geometry.boundary_N3, geometry.latent_G3, given_BNC)
        finally:
            integral_transform.segment_csr = reduction
        x_BCTHW = x_BGC.transpose(1, 2).unflatten(2, geometry.latent_shape)
        h_BCTHW = self.lifting(torch.cat([x_BCTHW, batch.features_BFTHW], dim=1))
        for layer in range(self.fno_blocks.n_layers):
            h_BCTHW = self.fno_blocks(h_BCTHW, layer)
        change_BVTK = self.projection(h_BCTHW).flatten(3)[..., geometry.cell_K]
        return batch.last_KBV.unsqueeze(2) + change_BVTK.permute(3, 0, 2, 1)


def measure(name: str, rounds: int) -> Iterator[Row]:
    """Against the library, and the share of the products' rate."""
    size = SIZES[name]
    model, batch = prepared(size)
    theirs = LibraryGfno(model, size.config)
    with torch.no_grad():
        expected = theirs(batch)
        assert (model(batch) - expected).abs().max() < 1e-4 * expected.abs().max()
    steps = {
        "millrace": training(model, lambda: model(batch), batch),
        "library": training(theirs, lambda: theirs(batch), batch),
    }
    with FlopCounterMode(display=False) as counter:
        steps["millrace"]()
    times = in_turns(steps, rounds)
    least = Limits.measured().seconds(counter.get_total_flops())
    what = f"GFNO step, {name} size, grid {'x'.join(map(str, size.grid))}, batch {size.samples}"
    share = least / float(np.median(times["millrace"]))
    peer = "neuralop, folded segment_reduce"
    yield Row(what, "s", times["millrace"], peer, times["library"], GOAL, share=share)


GOAL = 2.5


def prepared(size: Size) -> tuple[GFNO, PlaneBatch]:
    """A model and samples."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scale = torch.ones(VARIABLES)
    model = GFNO(size.config, BOUNDARY, FEATURES, size.radius, scale)
    return model, make_batch(size)


def make_batch(size: Size) -> PlaneBatch:
    """Boundary points at random places, the same at each step; a tenth of the cells is masked."""
    random, (steps, *cells) = np.random.default_rng(0), size.grid
    axes = [np.linspace(0, 1, n) for n in size.grid]
    latent = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    times = np.repeat(axes[0], size.points)
    boundary = np.column_stack([times, np.tile(random.random((size.points, 2)), (steps, 1))])
    valid = np.flatnonzero(random.random(cells[0] * cells[1]) > 0.1)
    table = radius_neighbours(boundary, latent, size.radius)
    samples, shape = size.samples, (len(valid), size.samples)
    geometry = PlaneGeometry(
        boundary_N3=torch.tensor(boundary, dtype=torch.float32),
        latent_G3=torch.tensor(latent, dtype=torch.float32),
        latent_shape=size.grid,
        cell_K=torch.from_numpy(valid),
        into_latent=NeighbourTable.from_csr(table, len(boundary)),
    )
    return PlaneBatch(
        x_NBC=torch.randn(len(boundary), samples, BOUNDARY),
        features_BFTHW=torch.randn(samples, FEATURES, *size.grid),
        last_KBV=torch.randn(*shape, VARIABLES),
        y_KBTV=torch.randn(*shape, steps, VARIABLES),
        scale_V=torch.ones(VARIABLES),
        variance_weight_KV=torch.ones(len(valid), VARIABLES),
        weight_B=torch.ones(samples),
        geometry=geometry,
    )


if __name__ == "__main__":
    run({f"gfno-{name}": partial(measure, name) for name in SIZES}, __doc__)
