"""Settings of experiments on blocks: their sections ``data`` and ``model``, without torch."""

from dataclasses import dataclass

from millrace.config import check_one_of
from millrace.errors import ConfigError

ARCHITECTURES = ("nested_unet", "mlp")


@dataclass(frozen=True)
class BlockDatasetConfig:
    """What a sample holds; the ``data:`` block of an experiment on blocks."""

    variables: tuple[str, ...] = ("tas",)
    season: bool = False
    """Give the time of the year: for training periods of some years, a part of one says nothing of the
    rest."""
    climatology: bool = True
    """Give what each cell differs by from its block in the mean of the training period."""

    def __post_init__(self) -> None:
        if not self.variables:
            raise ConfigError("data.variables: expected at least one")


@dataclass(frozen=True)
class DownscalerConfig:
    """Parameters of the downscaler, see config/README.md for what each does."""

    architecture: str = "nested_unet"
    """``nested_unet``, or ``mlp``: the shape of the reference, each block alone."""
    channels: tuple[int, ...] = (24, 48, 96, 128, 128)
    """Of each level of the U-Net, from the fine cells to the blocks."""
    depth: int = 1
    """Residual layers of a level of the U-Net, down and up."""
    embedding: int = 64
    """Size of the embedding of the noise level."""
    noise_mean: float = -1.2
    """Mean of the logarithm of the noise level in training."""
    noise_std: float = 1.2

    def __post_init__(self) -> None:
        check_one_of("model.architecture", self.architecture, ARCHITECTURES)
        if min((*self.channels, self.depth)) < 1 or self.embedding < 2 or self.embedding % 2:
            raise ConfigError(
                "model: expected channels and depth of 1 or more, and an even embedding"
            )
        if not self.noise_std > 0:
            raise ConfigError(f"model.noise_std = {self.noise_std}: expected more than 0")


@dataclass(frozen=True)
class RegressionConfig:
    """Parameters of the regression, see config/README.md for what each does."""

    channels: tuple[int, ...] = (24, 48, 96, 128, 128)
    """Of each level of the U-Net, from the fine cells to the blocks."""
    depth: int = 1
    """Residual layers of a level of the U-Net, down and up."""

    def __post_init__(self) -> None:
        if min((*self.channels, self.depth)) < 1:
            raise ConfigError("model: expected channels and depth of 1 or more")
