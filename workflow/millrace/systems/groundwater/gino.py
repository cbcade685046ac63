"""Geometry-informed neural operator (GINO) for groundwater patches.

Li et al. (2023), Geometry-Informed Neural Operator for Large-Scale 3D PDEs, NeurIPS 2023. Layers and
parameters are those of `neuralop.models.GINO` 2.0.0; graph layers are evaluated by
`millrace.systems.groundwater.gno` over neighbour tables that were computed with the samples, Fourier layers
by `millrace.systems.groundwater.fourier`.

Shape suffixes: N points, K core points, G latent points, B samples, C channels, T steps, V variables.
"""

import os
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor

from millrace.errors import ConfigError
from millrace.models.losses import forecast, forecast_loss
from millrace.models.spec import ModelSpec
from millrace.systems.groundwater.fourier import Basis, ChannelLast, FourierLayers
from millrace.systems.groundwater.gno import KernelSum, gno
from millrace.systems.groundwater.kernels import KERNELS
from millrace.systems.groundwater.network import GraphNetwork, continued
from millrace.systems.groundwater.neuraloperator import LibraryGINO
from millrace.systems.groundwater.patch_dataset import LatentGeometry, PatchBatch, PatchDataset
from millrace.systems.groundwater.settings import GinoConfig

HAS_TRITON = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def library_model(config: GinoConfig, in_channels: int, out_channels: int) -> LibraryGINO:
    """The library's model, whose parameters and their names are those of `GINO.net`."""
    return LibraryGINO(
        in_channels=in_channels,
        out_channels=out_channels,
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


class GINO(GraphNetwork):
    """Predict the next ``output_steps`` states on the core points of a patch from C = ``in_channels``."""

    def __init__(
        self, config: GinoConfig, in_channels: int, output_steps: int, increment_scale_V: Tensor
    ) -> None:
        super().__init__(increment_scale_V)
        self.output_shape = (output_steps, len(increment_scale_V))
        self.by_triton = config.kernel_sums == "triton"
        self.net = library_model(config, in_channels, output_steps * len(increment_scale_V))
        self.net.lifting = ChannelLast(self.net.lifting)
        self.net.projection = ChannelLast(self.net.projection)
        self.net.fno_blocks = FourierLayers(self.net.fno_blocks)

    def prepared(self, geometry: LatentGeometry) -> tuple[Tensor, Tensor, Basis]:
        """Embedded positions of points and latent points, and the basis of the latent grid."""
        net = self.net
        points_ND, latent_GD = self.embeddings(
            geometry, (net.gno_in, geometry.points_N3), (net.gno_out, geometry.latent_G3)
        )
        return points_ND, latent_GD, net.fno_blocks.basis(geometry.latent_shape)

    def computed(
        self, batch: PatchBatch, points_ND: Tensor, latent_GD: Tensor, basis: Basis
    ) -> Tensor:
        """The forecast, given what is `prepared`."""
        geometry = cast(LatentGeometry, batch.geometry)
        net, n_core = self.net, geometry.n_core
        tables, sums = (geometry.into_latent, geometry.from_latent), self.sums(batch.x_NBC.device)
        f_CNB = batch.x_NBC.permute(2, 0, 1)
        x_CGB = gno(net.gno_in, points_ND, latent_GD, f_CNB, tables[0], "mean", sums)
        # Kernels on a CPU take sample by sample, all else point by point.
        first, second = (2, 1) if net.fno_blocks.has_kernels() else (1, 2)
        x_CR = x_CGB.permute(0, first, second).flatten(1)
        h_RH = net.lifting(x_CR, rows=True)
        h_HGB = h_RH.t().unflatten(1, (x_CGB.shape[first], -1)).permute(0, first, second)
        h_HGB = net.fno_blocks(h_HGB.permute(1, 2, 0), basis).permute(2, 0, 1)
        core_KD = points_ND[:n_core]
        h_HKB = gno(net.gno_out, latent_GD, core_KD, h_HGB, tables[1], "sum", sums)
        change_TR = net.projection(h_HKB.permute(0, first, second).flatten(1))
        change_TKB = change_TR.unflatten(1, (h_HKB.shape[first], -1)).permute(0, first, second)
        change_KBTV = change_TKB.permute(1, 2, 0).unflatten(2, self.output_shape)
        return self.forecast(batch, change_KBTV)

    def sums(self, device: torch.device) -> KernelSum | None:
        """Kernel sums by Triton where the configuration wants them and they run; else None."""
        if not (self.by_triton and _runs_triton(device)) or torch.compiler.is_exporting():
            return None
        from millrace.systems.groundwater.triton_sums import kernel_sum

        return kernel_sum


def _build(config: GinoConfig, dataset: PatchDataset) -> GINO:
    scale = torch.from_numpy(dataset.increment_scale)
    return GINO(config, dataset.in_channels, dataset.config.output_steps, scale)


def _runs_triton(device: torch.device) -> bool:
    """Whether Triton is there and has a GPU, or interprets its kernels, as tests have it do."""
    return HAS_TRITON and (device.type == "cuda" or _INTERPRETED)


def _check(config: GinoConfig, device: torch.device) -> None:
    if config.kernel_sums == "triton" and not _runs_triton(device):
        missing = "GPU" if HAS_TRITON or device.type != "cuda" else "package triton"
        raise ConfigError(
            "model.kernel_sums: triton needs a GPU and the package triton, which CUDA builds of PyTorch "
            f"bring along, and there is no {missing}; take bags"
        )


SPEC = ModelSpec(
    name="gino",
    config=GinoConfig,
    build=_build,
    predict=forecast,
    loss=forecast_loss,
    continued=continued,
    check=_check,
    kernels=KERNELS,
    recomputed=("net.fno_blocks", "net.projection"),
)
