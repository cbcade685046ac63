"""What networks with graph layers and Fourier layers have in common."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from millrace.models.losses import field_loss
from millrace.models.settings import LossConfig
from millrace.systems.groundwater.gno import embed
from millrace.systems.groundwater.group_dataset import WindowBatch
from millrace.systems.groundwater.neuraloperator import GNOBlock


def continued(module: nn.Module, batch: WindowBatch, config: LossConfig) -> tuple[Tensor, Tensor]:
    """`ModelSpec.continued`: loss, [B], and the past states of core points that follow, [B, K, T, V]."""
    forecast_KBTV = module(batch)
    loss_B = field_loss(
        forecast_KBTV, batch.y_KBTV, batch.scale_V, config, batch.variance_weight_KV
    )
    past_KBTV = batch.past_NBTV[: len(forecast_KBTV)]
    states_KBTV = torch.cat([past_KBTV, forecast_KBTV], dim=2)[:, :, -past_KBTV.shape[2] :]
    return loss_B, states_KBTV.swapaxes(0, 1)


class GraphNetwork(nn.Module):
    """A network whose forecasts are increments over the last given state.

    Increments are in units of the typical one-step change of each variable, which is ``increment_scale_V``
    standard deviations: an untrained network is close to persistence, the baseline it has to beat.
    """

    increment_scale_V: Tensor
    prepared: Callable[..., tuple[Any, ...]]
    """(geometry) -> what it alone decides."""
    computed: Callable[..., Tensor]
    """(batch, *prepared) -> forecast in normalised units, [K, B, T, V]."""

    def __init__(self, increment_scale_V: Tensor) -> None:
        super().__init__()
        self.register_buffer("increment_scale_V", increment_scale_V.float())
        self.embedded: WeakKeyDictionary[Any, tuple[Tensor, ...]] = WeakKeyDictionary()

    def forward(self, batch: WindowBatch) -> Tensor:
        """Forecast in normalised units, [K, B, T, V]."""
        return self.computed(batch, *self.prepared(batch.geometry))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what is computed of samples, as one graph; what is prepared is not a part of it."""
        self.computed = torch.compile(self.computed, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is compiled, which would compute with this module's weights in a copy, too."""
        state: dict[str, Any] = super().__getstate__()
        state.pop("computed", None)
        return state

    def embeddings(self, geometry: Any, *points: tuple[GNOBlock, Tensor]) -> tuple[Tensor, ...]:
        """Positions of a geometry as embedded by graph layers, which happens once."""
        if geometry not in self.embedded:
            with torch.no_grad():
                self.embedded[geometry] = tuple(embed(block, place) for block, place in points)
        return self.embedded[geometry]

    def forecast(self, batch: WindowBatch, change_KBTV: Tensor) -> Tensor:
        """Forecast in normalised units, [K, B, T, V]."""
        return batch.last_KBV.unsqueeze(2) + self.increment_scale_V * change_KBTV
