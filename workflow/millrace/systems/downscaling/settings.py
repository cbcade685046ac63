"""Blocks of the configuration that belong to ICON and its downscaling, without torch."""

from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.config import Count, Seed, Settings, SomeNames, option
from millrace.systems.settings import MissingConfig, Parts, SplitDatasetSettings


class ClimateConfig(Settings):
    """Temperature near the ground on an icosahedral grid, in the files of ICON.

    It looks like weather and obeys no equation of motion: random waves that are carried round the globe,
    over continents with mountains and a daily cycle.
    """

    level: int = option(4, ge=0, le=7)
    """Of the grid R2B`level`, which has 80 x 4^level cells; 3 for a quick try."""
    steps: int = option(480, ge=1, le=100_000)
    """Output times."""
    interval: float = option(6.0, ge=0.25, le=24, unit="h")
    """Between output times."""
    steps_per_file: int = option(120, ge=1, le=100_000)
    """Output times in a file."""
    seed: Seed = 0
    """Of land and weather: another planet of the same kind."""
    absolute_time: bool = True
    """Write times as `day as %Y%m%d.%f`, otherwise as hours since the first day."""


class BlockSettings(Settings):
    """How the grid is cut: a block is a cell of a coarser grid of the chain of refinements.

    Its mean is given, its cells are wanted.
    """

    levels: int = option(4, ge=1, le=8)
    """Refinements between a block and its cells; a block has 4^levels cells."""


class BlockConfig(BlockSettings):
    """What is taken from the files of ICON, and how it is cut."""

    variables: SomeNames = ("tas",)
    """Two-dimensional fields."""
    missing: MissingConfig | None = None
    """What a no-data value such as -999 means."""


class IconDataset(SplitDatasetSettings):
    """Grid and output files of ICON: NetCDF anywhere below the source."""

    variables: SomeNames
    """Two-dimensional fields of the output files to keep, in the demo `tas` (K)."""
    blocks: BlockSettings = BlockSettings()
    """How the grid is cut."""
    missing: MissingConfig | None = None
    """What a no-data value such as -999 means; those that look like one are refused."""
    parts: Parts = None
    """Jobs that extract the samples; what they make does not depend on their number. null: one for every
    16 GiB of raw files."""


class BlockDatasetConfig(Settings):
    """Samples on blocks: a grid or a piece of it at one time, its block means given, its cells wanted."""

    variables: SomeNames = ("tas",)
    """Fields both given as means and wanted."""
    season: bool = False
    """Give the time of the year, if the training period covers some years; a part of one says nothing of
    the rest."""
    climatology: bool = True
    """Give what each cell differs by from its block in the mean of the training period."""
    piece_blocks: Count | None = None
    """Divide the grid into pieces of at most so many blocks, each a sample of its own together with the
    blocks around it that the network sees. For grids that are too large for a GPU: it needs memory for a
    piece, whatever the grid, and forecasts are those of the whole grid. Take 1024 or more: around few
    blocks lie many. null: a sample is the whole grid."""


Channels = Annotated[tuple[Count, ...], Field(min_length=1)]
_CHANNELS: Channels = (24, 48, 96, 128, 128)


class DownscalerConfig(Settings):
    """A diffusion model, which draws as many fine fields as are asked for."""

    architecture: Literal["nested_unet", "mlp"] = "nested_unet"
    """`nested_unet`: convolutions on the triangles, across blocks; `mlp`: each block alone, as in the
    plug-in that this model comes from."""
    channels: Channels = _CHANNELS
    """Of each level, from the cells to the blocks, `levels` + 1 numbers; wider if the training loss stays
    high."""
    depth: Count = 1
    """Residual layers of a level, down and up."""
    embedding: int = option(64, ge=2, le=10**6, multiple_of=2)
    """Size of the embedding of the noise level, even."""
    noise_mean: float = -1.2
    """Mean of the logarithm of the noise level in training; -0.8 if members are too much alike."""
    noise_std: float = option(1.2, gt=0)
    """Its standard deviation."""
    noise_levels: Literal["sample", "block"] = "sample"
    """Drawn in training: one for all blocks of a sample, or one for each block, which takes fewer epochs;
    `block` with `mlp` only."""

    def model_post_init(self, _: Any) -> None:
        """Refuse levels that a network would be trained with and never draw with."""
        if self.noise_levels == "block" and self.architecture != "mlp":
            raise ValueError(
                "noise_levels: expected sample, got 'block': blocks of nested_unet see each other, and are "
                "drawn at one level; take architecture: mlp"
            )


class RegressionConfig(Settings):
    """The same network without noise. It gives one field, the one to be expected."""

    channels: Channels = _CHANNELS
    """Of each level, from the cells to the blocks, `levels` + 1 numbers; wider if the training loss stays
    high."""
    depth: Count = 1
    """Residual layers of a level, down and up."""
