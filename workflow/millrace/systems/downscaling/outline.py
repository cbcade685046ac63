"""The shape of block samples without the samples: what planning builds a model on.

Around a piece of a grid lie about as many blocks as around one of the same size on any other grid: they are
counted on an icosahedral grid that is a few times larger than the piece.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from millrace.errors import ConfigError
from millrace.systems.base import Block
from millrace.systems.downscaling.dataset import BlockBatch
from millrace.systems.downscaling.geometry import BlockGeometry, Level
from millrace.systems.downscaling.icon import cells_of
from millrace.systems.downscaling.icon_source import Ints
from millrace.systems.downscaling.pieces import CHILDREN, Seen, divided
from millrace.systems.downscaling.settings import BlockDatasetConfig, BlockSettings, ClimateConfig
from millrace.systems.downscaling.simulator.icosphere import Icosphere
from millrace.systems.downscaling.sparse import SparseMatrix

_ROOM = 6
"""Pieces of the grid on which the blocks around one of them are counted, or more; on one of four the globe
is so curved that they are a tenth too few."""
_COUNTED_LEVELS = 2
"""Finest refinements below the blocks that are taken there: what is reached on finer ones lies within."""


def outline(dataset: Block, data: Block, grid: Any, levels_of_air: Any) -> "BlockOutline":
    """Outline of an experiment's samples: `millrace.systems.base.SampleKind.outline`."""
    if grid is not None or levels_of_air is not None:
        raise ConfigError(
            "--grid and --levels: these samples have as many cells as their grid file; leave them out"
        )
    levels = BlockSettings.parse(dataset.get("blocks", {}), "blocks").levels
    config = BlockDatasetConfig.parse(data, "data")
    if dataset["source"] == "demo":
        level = ClimateConfig.parse(dataset.get("demo", {}), "demo").level
        n_cells = len(Icosphere.build(0).cells_N3) * CHILDREN**level
    else:
        n_cells = cells_of(Path(dataset["source"]), dataset["variables"])
    return BlockOutline(config, levels, n_cells)


@dataclass
class BlockOutline:
    """Stands in for a `BlockDataset` where only sizes count."""

    config: BlockDatasetConfig
    levels: int
    """Refinements between a block and its cells."""
    n_cells: int
    """Of the grid."""
    _seen: Seen | None = field(default=None, repr=False)
    _takes_features: bool = field(default=True, repr=False)

    @property
    def said(self) -> str:
        """What a sample is, for people, once the model has been built."""
        own, blocks = self.n_blocks
        return f"{self.n_cells:,} cells; {own} blocks of {self.per_block} a sample, {blocks - own} around"

    @property
    def per_block(self) -> int:
        """Cells of a block."""
        return CHILDREN**self.levels

    @property
    def grid(self) -> "BlockOutline":
        """What has `per_block`."""
        return self

    @property
    def neighbours(self) -> list[None]:
        """One for each level, without content."""
        return [None] * (self.levels + 1)

    @property
    def n_clock(self) -> int:
        """Numbers that tell the time."""
        return 4 if self.config.season else 2

    @property
    def n_features(self) -> int:
        """Channels of a cell, with surface and land, which the grid file may not have."""
        n_variables = len(self.config.variables)
        return 10 + n_variables * (1 + self.config.climatology) + self.n_clock

    def surround(self, seen: Seen, takes_features: bool = True) -> None:
        """Count what the network of the experiment sees around a piece, and what it takes of cells."""
        if self._seen is None:
            self._seen, self._takes_features = seen, takes_features
            self.__dict__.pop("n_blocks", None)

    @cached_property
    def n_blocks(self) -> tuple[int, int]:
        """Own blocks of a piece, and all of its sample."""
        on_grid = max(1, self.n_cells // self.per_block)
        own = min(self.config.piece_blocks or on_grid, on_grid)
        if own == on_grid or self._seen is None:
            return own, own
        levels = min(self.levels, _COUNTED_LEVELS)
        coarsest = int(np.ceil(np.log(max(1, _ROOM * own / 80)) / np.log(CHILDREN)))
        grids = [Icosphere.build(coarsest + levels - level) for level in range(levels + 1)]
        neighbours: list[Ints] = [grid.neighbours_N3 for grid in grids]
        pieces = divided(grids[-1].centres_N3, own)
        seen = max(len(self._seen(one, neighbours)) for one in pieces[: 2 * _ROOM])
        return own, min(on_grid, seen)

    def batch(self, samples: int) -> BlockBatch:
        """A batch of no particular content."""
        (own, blocks), n_variables = self.n_blocks, len(self.config.variables)
        n_cells = blocks * self.per_block
        device, levels = torch.device("cpu"), []
        for level in range(self.levels + 1):
            size = blocks * CHILDREN ** (self.levels - level)
            pair = [
                SparseMatrix.empty(shape, 3 * size, device)
                for shape in ((3 * size // CHILDREN, size), (size, 3 * size // CHILDREN))
            ]
            down, up = pair if level < self.levels else (None, None)
            matrix = SparseMatrix.empty((4 * size, size), 13 * size, device)
            levels.append(Level(size, matrix, down, up))
        fields = torch.empty(samples, n_cells, n_variables)
        return BlockBatch(
            y_BNV=fields,
            coarse_BMV=torch.empty(samples, blocks, n_variables),
            features_BNF=torch.empty(
                samples, n_cells, (n_variables + self.n_clock) * self._takes_features
            ),
            clock_BF=torch.empty(samples, self.n_clock),
            weight_B=torch.empty(samples),
            geometry=BlockGeometry(
                levels=tuple(levels),
                static_NF=torch.empty(n_cells, self.n_features - n_variables - self.n_clock),
                interpolation=SparseMatrix.empty((n_cells, blocks), 3 * n_cells, device),
                share_N=torch.empty(n_cells),
                block_neighbours_M3=torch.zeros(blocks, 3, dtype=torch.int64),
                block_centres_M3=torch.empty(blocks, 3),
                n_own=own,
            ),
            sigma_BL=torch.empty(samples, 1),
            noise_BNV=torch.empty_like(fields),
        )
