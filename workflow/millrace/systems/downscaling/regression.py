"""The downscaler's network as a deterministic regression: what one gets without diffusion.

It learns the conditional mean, which no ensemble mean can beat by much, and which is too smooth.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn

from millrace.models.spec import ModelSpec
from millrace.systems.downscaling.dataset import BlockBatch, BlockDataset, as_fields
from millrace.systems.downscaling.diffusion import check_levels, conditions, recentred
from millrace.systems.downscaling.nested_unet import NestedUnet
from millrace.systems.downscaling.pieces import see, seen_by_unet
from millrace.systems.downscaling.settings import RegressionConfig


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
    return as_fields(batch.geometry.own(module(batch)))


def _loss(module: nn.Module, batch: BlockBatch, config: Any) -> Tensor:
    return batch.geometry.mean((module(batch) - batch.y_BNV).square())


def _build(config: RegressionConfig, dataset: BlockDataset) -> Regression:
    check_levels(config.channels, dataset)
    see(dataset, partial(seen_by_unet, depth=config.depth))
    return Regression(config, dataset)


SPEC = ModelSpec(
    name="regression",
    config=RegressionConfig,
    build=_build,
    predict=_predict,
    loss=_loss,
    recomputed=("net.encoder.*.*", "net.decoder.*.*"),
)
