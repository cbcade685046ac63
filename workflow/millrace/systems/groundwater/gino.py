"""Geometry-informed neural operator (GINO) for groundwater patches.

Li et al. (2023), Geometry-Informed Neural Operator for Large-Scale 3D PDEs, NeurIPS 2023. Layers and
parameters are those of `neuralop.models.GINO` 2.0.0; the two graph layers are evaluated by
`millrace.systems.groundwater.gno` over neighbour tables that were computed with the samples.

Shape suffixes: N points, K core points, G latent points, B samples, C channels, T steps, V variables.
"""

from typing import cast

import torch
from torch import Tensor

from millrace.models.losses import forecast, forecast_loss
from millrace.models.spec import ModelSpec
from millrace.systems.groundwater.gno import gno
from millrace.systems.groundwater.network import GraphNetwork, spectral_in_float32
from millrace.systems.groundwater.neuraloperator import LibraryGINO
from millrace.systems.groundwater.patch_dataset import LatentGeometry, PatchBatch, PatchDataset
from millrace.systems.groundwater.settings import GinoConfig


class GINO(GraphNetwork):
    """Predict the next ``output_steps`` states on the core points of a patch from C = ``in_channels``."""

    def __init__(
        self, config: GinoConfig, in_channels: int, output_steps: int, increment_scale_V: Tensor
    ) -> None:
        super().__init__(increment_scale_V)
        self.output_shape = (output_steps, len(increment_scale_V))
        self.net = LibraryGINO(
            in_channels=in_channels,
            out_channels=output_steps * len(increment_scale_V),
            gno_coord_dim=3,
            in_gno_radius=config.radius,
            out_gno_radius=config.radius,
            in_gno_transform_type="linear",
            out_gno_transform_type="linear",
            # With the linear transform the kernel multiplies the input channel by channel.
            fno_in_channels=in_channels,
            fno_n_modes=config.modes,
            fno_hidden_channels=config.hidden,
            fno_n_layers=config.layers,
            fno_use_channel_mlp=False,
            in_gno_channel_mlp_hidden_layers=list(config.kernel_widths),
            out_gno_channel_mlp_hidden_layers=list(config.kernel_widths),
            gno_use_open3d=False,
            gno_use_torch_scatter=False,
        )
        spectral_in_float32(self)

    def forward(self, batch: PatchBatch) -> Tensor:
        """Forecast in normalised units, [K, B, T, V]."""
        geometry = cast(LatentGeometry, batch.geometry)
        inward, outward = self.net.gno_in, self.net.gno_out
        points_ND, latent_GD = self.embeddings(
            geometry, (inward, geometry.points_N3), (outward, geometry.latent_G3)
        )
        x_GBC = gno(inward, points_ND, latent_GD, batch.x_NBC, geometry.into_latent, "mean")
        n_samples = x_GBC.shape[1]
        grid = x_GBC.transpose(0, 1).reshape(n_samples, *geometry.latent_shape, -1)
        h_BHG = self.net.latent_embedding(grid).flatten(2)
        h_GBH, core_KD = h_BHG.permute(2, 0, 1).contiguous(), points_ND[: geometry.n_core]
        h_KBH = gno(outward, latent_GD, core_KD, h_GBH, geometry.from_latent, "sum")
        out_BCK = self.net.projection(h_KBH.permute(1, 2, 0))
        change_KBTV = out_BCK.permute(2, 0, 1).unflatten(2, self.output_shape)
        return self.forecast(batch, change_KBTV)


def _build(config: GinoConfig, dataset: PatchDataset) -> GINO:
    scale = torch.from_numpy(dataset.increment_scale)
    return GINO(config, dataset.in_channels, dataset.config.output_steps, scale)


SPEC = ModelSpec(
    name="gino",
    config=GinoConfig,
    build=_build,
    predict=forecast,
    loss=forecast_loss,
    recomputed=("net.fno_blocks", "net.projection"),
)
