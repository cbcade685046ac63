"""Graph-Fourier neural operator (GFNO) for vertical sections of an aquifer.

A graph layer (Li et al. 2020, arXiv:2003.03485) carries boundary values into a regular space-time grid,
Fourier layers (Li et al. 2021, arXiv:2010.08895) advance the fields on it. Layers are those of `neuralop`
2.0.0; the graph layer is evaluated by `millrace.systems.groundwater.gno` over neighbour tables that come
with the samples.

Shape suffixes: N boundary points x steps, G grid points (T, H, W), K valid cells, B samples, C channels,
T steps, V variables.
"""

import torch
from torch import Tensor, nn

from millrace.errors import ConfigError
from millrace.models.losses import forecast, forecast_loss
from millrace.models.spec import ModelSpec
from millrace.systems.groundwater.fourier import Basis, ChannelLast, FourierLayers
from millrace.systems.groundwater.gno import NeighbourTable, gno
from millrace.systems.groundwater.kernels import KERNELS
from millrace.systems.groundwater.network import GraphNetwork, continued
from millrace.systems.groundwater.neuraloperator import ChannelMLP, FNOBlocks, GNOBlock
from millrace.systems.groundwater.plane_dataset import PlaneBatch, PlaneDataset, PlaneGeometry
from millrace.systems.groundwater.settings import GfnoConfig


class GFNO(GraphNetwork):
    """Predict the next states in the valid cells of a plane.

    Boundary values and grid features have a number of channels each; ``radius`` is the neighbourhood of the
    graph layer, which the tables of the samples have too.
    """

    def __init__(
        self,
        config: GfnoConfig,
        boundary_channels: int,
        feature_channels: int,
        radius: float,
        increment_scale_V: Tensor,
    ) -> None:
        super().__init__(increment_scale_V)
        # With the linear transform the kernel multiplies channel by channel, so that boundary values
        # are lifted to the channels of the graph layer first.
        self.boundary = nn.Linear(boundary_channels, config.gno_channels)
        self.gno = GNOBlock(
            in_channels=config.gno_channels,
            out_channels=config.gno_channels,
            coord_dim=3,
            radius=radius,
            transform_type="linear",
            reduction="mean",
            channel_mlp_layers=list(config.kernel_widths),
            use_torch_scatter_reduce=False,
            use_open3d_neighbor_search=False,
        )
        self.lifting = ChannelMLP(
            in_channels=config.gno_channels + feature_channels,
            out_channels=config.hidden,
            hidden_channels=2 * config.hidden,
        )
        self.fno_blocks = FNOBlocks(
            in_channels=config.hidden,
            out_channels=config.hidden,
            n_modes=config.modes,
            n_layers=config.layers,
            use_channel_mlp=False,
        )
        self.projection = ChannelMLP(
            in_channels=config.hidden,
            out_channels=len(increment_scale_V),
            hidden_channels=4 * config.hidden,
        )
        self.lifting, self.projection = ChannelLast(self.lifting), ChannelLast(self.projection)
        self.fno_blocks = FourierLayers(self.fno_blocks)

    def prepared(self, geometry: PlaneGeometry) -> tuple[Tensor, Tensor, Basis]:
        """Embedded positions of boundary and grid points, and the basis of the grid."""
        boundary_ND, latent_GD = self.embeddings(
            geometry, (self.gno, geometry.boundary_N3), (self.gno, geometry.latent_G3)
        )
        return boundary_ND, latent_GD, self.fno_blocks.basis(geometry.latent_shape)

    def computed(
        self, batch: PlaneBatch, boundary_ND: Tensor, latent_GD: Tensor, basis: Basis
    ) -> Tensor:
        """The forecast, given what is `prepared`."""
        geometry = batch.geometry
        x_CGB = self.encode(batch.x_NBC, geometry.into_latent, boundary_ND, latent_GD)
        features_FGB = batch.features_BFTHW.flatten(2).permute(1, 2, 0)
        x_CGB = torch.cat([x_CGB, features_FGB])
        first, second = (2, 1) if self.fno_blocks.has_kernels() else (1, 2)  # as in GINO
        h_RH = self.lifting(x_CGB.permute(0, first, second).flatten(1), rows=True)
        h_HGB = h_RH.t().unflatten(1, (x_CGB.shape[first], -1)).permute(0, first, second)
        h_GBH = self.fno_blocks(h_HGB.permute(1, 2, 0), basis)
        h_TSBH = h_GBH.unflatten(0, (geometry.latent_shape[0], -1))[:, geometry.cell_K]
        change = self.projection(h_TSBH.flatten(0, 2).t())
        change_VTKB = change.unflatten(1, h_TSBH.shape[:3])
        return self.forecast(batch, change_VTKB.permute(2, 3, 1, 0))

    def encode(
        self, x_NBC: Tensor, table: NeighbourTable, boundary_ND: Tensor, latent_GD: Tensor
    ) -> Tensor:
        """Carry boundary values into the grid, [C, G, B]; 0 where no boundary point is near."""
        f_CNB = self.boundary(x_NBC).permute(2, 0, 1)
        return gno(self.gno, boundary_ND, latent_GD, f_CNB, table, "mean")


def _build(config: GfnoConfig, dataset: PlaneDataset) -> GFNO:
    for modes, points in zip(config.modes, dataset.grid_shape, strict=True):
        if modes > points:
            raise ConfigError(
                f"model.modes {list(config.modes)}: at most the {list(dataset.grid_shape)} steps and cells "
                "of the planes along each axis"
            )
    return GFNO(
        config,
        dataset.boundary_channels,
        dataset.feature_channels,
        dataset.config.radius,
        torch.from_numpy(dataset.increment_scale),
    )


SPEC = ModelSpec(
    name="gfno",
    config=GfnoConfig,
    build=_build,
    predict=forecast,
    loss=forecast_loss,
    continued=continued,
    kernels=KERNELS,
    recomputed=("lifting", "fno_blocks", "projection"),
)
