"""The downscaler's network as a deterministic regression: what one gets without diffusion.

It learns the conditional mean, which no ensemble mean can beat by much, and which is too smooth.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from millrace.errors import ConfigError
from millrace.models.spec import ModelSpec
from millrace.systems.downscaling.dataset import BlockBatch, BlockDataset, as_fields
from millrace.systems.downscaling.diffusion import check_levels, conditions, recentred
from millrace.systems.downscaling.nested_unet import NestedUnet


@dataclass(frozen=True)
class RegressionConfig:
    """Parameters of the regression, see config/README.md for what each does."""

    channels: tuple[int, ...] = (24, 48, 96, 128, 128)
    """Of each level of the U-Net, from the fine cells to the blocks."""
    depth: int = 1
    """Residual layers of a level of the U-Net, down and up."""

    def __post_init__(self) -> None:
        if min(*self.channels, self.depth) < 1:
            raise ConfigError("model: expected channels and depth of 1 or more")


class Regression(nn.Module):
    """The field that is expected, given the block means."""

    def __init__(self, config: RegressionConfig, dataset: BlockDataset) -> None:
        super().__init__()
        n_variables = len(dataset.config.variables)
        shape = (config.channels, 0, config.depth)
        self.net = NestedUnet(n_variables + dataset.n_features, n_variables, *shape)

    def forward(self, batch: BlockBatch) -> Tensor:
        """Differences from the block means, which they leave alone, [B, N, V]."""
        return recentred(self.net(conditions(batch), None, batch.geometry), batch)


def _predict(module: nn.Module, batch: BlockBatch) -> Tensor:
    return as_fields(module(batch))


def _loss(module: nn.Module, batch: BlockBatch, config: Any) -> Tensor:
    return (module(batch) - batch.y_BNV).square().mean(dim=(1, 2))


def _build(config: RegressionConfig, dataset: BlockDataset) -> Regression:
    check_levels(config.channels, dataset)
    return Regression(config, dataset)


SPEC = ModelSpec(
    name="regression",
    config=RegressionConfig,
    build=_build,
    predict=_predict,
    loss=_loss,
    recomputed=("net.encoder.*.*", "net.decoder.*.*"),
)
