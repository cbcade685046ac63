"""Models on arrays: any module from fields to fields.

Shape suffixes: K cells, B samples, T steps, V targets, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from millrace.data.arrays import ArrayBatch, ArrayDataset, as_points
from millrace.errors import ConfigError
from millrace.models.losses import field_loss, forecast
from millrace.models.settings import LossConfig
from millrace.models.spec import ModelSpec


class ArrayModel(nn.Module):
    """Predict fields as the last given ones plus what a network says, in units of their typical change.

    Samples without a last given state, which are not forecasts in time, are predicted in units of their
    standard deviation.

    Parameters
    ----------
    net : Module
        Maps [B, C, *grid] to [B, T * V, *grid], the V targets of each step side by side.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: ArrayBatch) -> Tensor:
        """Forecast in normalised units, [K, B, T, V]."""
        steps, targets, *grid = batch.y.shape[1:]
        change, expected = self.net(batch.x), (batch.x.shape[0], steps * targets, *grid)
        if change.shape != expected:
            raise ConfigError(
                f"model: the module gives the shape {tuple(change.shape)}, expected {expected}: samples, "
                "ArrayDataset.out_channels and the grid"
            )
        scale = batch.scale_V.reshape(-1, *[1] * len(grid))
        return as_points(batch.last.unsqueeze(1) + scale * change.unflatten(1, (steps, targets)))


def array_model(
    name: str,
    config: type,
    build: Callable[[Any, ArrayDataset], nn.Module],
    recomputed: Sequence[str] = (),
) -> ModelSpec:
    """Make a `ModelSpec` of a module from fields to fields.

    Parameters
    ----------
    name : str
    config : type
        Frozen dataclass of the model's parameters, which validates itself.
    build : callable
        (config, dataset) -> module for `ArrayModel`; the dataset has ``in_channels``, ``out_channels``,
        ``grid_shape`` and ``coordinates``.
    recomputed : sequence of str
        See `ModelSpec.recomputed`; names within the module.
    """
    return ModelSpec(
        name=name,
        config=config,
        build=lambda given, dataset: ArrayModel(build(given, dataset)),
        predict=forecast,
        loss=_loss,
        recomputed=tuple(f"net.{name}" for name in recomputed),
    )


def _loss(module: nn.Module, batch: ArrayBatch, config: LossConfig) -> Tensor:
    # No target has weights of its own.
    weight_KV = torch.ones_like(batch.y_KBTV[:, 0, 0])
    return field_loss(module(batch), batch.y_KBTV, batch.scale_V, config, weight_KV)
