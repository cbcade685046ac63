"""Conditional diffusion model that adds the fine scales to block means.

Preconditioning, noise levels and weights are those of Karras et al. (2022), Elucidating the Design
Space of Diffusion-Based Generative Models (EDM, arXiv:2206.00364), table 1. The model learns what cells
differ by from the mean of their block, given the means of all blocks, the surface and the time.

Shape suffixes: N fine cells, M blocks, B samples, L noise levels of a sample (one, or one for each block),
V variables, F features, E embedding.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from millrace.data.device import to_device
from millrace.errors import ConfigError
from millrace.models.products import Linear
from millrace.models.spec import ModelSpec
from millrace.systems.downscaling.block_mlp import BlockMlp
from millrace.systems.downscaling.dataset import BlockBatch, BlockDataset, as_fields
from millrace.systems.downscaling.nested_unet import NestedUnet
from millrace.systems.downscaling.pieces import see, seen_beside, seen_by_unet
from millrace.systems.downscaling.settings import DownscalerConfig

SIGMA_DATA = 0.5
"""Standard deviation of the target as the network sees it; the noise levels of EDM are made for it."""
SIGMA_MAX = 80.0
"""Where sampling begins: hardly anything is left of a field."""


class Downscaler(nn.Module):
    """Denoiser D of EDM around a network F."""

    def __init__(self, config: DownscalerConfig, dataset: BlockDataset) -> None:
        super().__init__()
        n_variables = len(dataset.config.variables)
        self.config = config
        self.fourier = NoiseEmbedding(config.embedding)
        self.net: nn.Module
        if config.architecture == "mlp":
            self.net = BlockMlp(dataset, config.embedding)
        else:
            shape = (config.channels, config.embedding, config.depth)
            self.net = NestedUnet(n_variables * 2 + dataset.n_features, n_variables, *shape)

    def forward(self, batch: BlockBatch) -> Tensor:
        """Estimate of the target from the batch's noisy version of it, [B, N, V]."""
        assert batch.sigma_BL is not None
        assert batch.noise_BNV is not None
        noisy_BNV = SIGMA_DATA * batch.y_BNV + scaled(batch.noise_BNV, batch.sigma_BL)
        return self.denoised(noisy_BNV, batch.sigma_BL, batch) / SIGMA_DATA

    def denoised(self, x_BNV: Tensor, sigma_BL: Tensor, batch: BlockBatch) -> Tensor:
        """D(x; sigma), equation 7 of EDM."""
        skip_BL, out_BL, into_BL = preconditioning(sigma_BL)
        raw_BNV = self.raw(scaled(x_BNV, into_BL), sigma_BL, batch)
        return scaled(x_BNV, skip_BL) + scaled(raw_BNV, out_BL)

    def raw(self, scaled_BNV: Tensor, sigma_BL: Tensor, batch: BlockBatch) -> Tensor:
        """F, whose input is scaled already: what samplers of `diffusers` take."""
        e_BLE = self.fourier(sigma_BL.log() / 4)
        if isinstance(self.net, BlockMlp):
            return self.net(scaled_BNV, e_BLE, batch)
        given_BNC = torch.cat([scaled_BNV, conditions(batch)], dim=2)
        return self.net(given_BNC, e_BLE[:, 0], batch.geometry).to(scaled_BNV.dtype)


class NoiseEmbedding(nn.Module):
    """Vector that tells each noise level, [B, L, E]."""

    frequency: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("frequency", 2 * math.pi * torch.logspace(-2, 1, size // 2))
        self.layers = nn.Sequential(Linear(size, size), nn.SiLU(), Linear(size, size))

    def forward(self, level_BL: Tensor) -> Tensor:
        """Embed ln(sigma) / 4."""
        angle = level_BL[..., None] * self.frequency
        return nn.functional.silu(self.layers(torch.cat([angle.sin(), angle.cos()], dim=-1)))


def scaled(x_BNV: Tensor, factor_BL: Tensor) -> Tensor:
    """Cells times what belongs to their noise level."""
    return (x_BNV.unflatten(1, (factor_BL.shape[1], -1)) * factor_BL[..., None, None]).flatten(1, 2)


def preconditioning(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in of EDM, table 1."""
    total = sigma**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt(), 1 / total.sqrt()


def loss_weight(sigma: Tensor) -> Tensor:
    """Weight of a noise level: the expected loss of an untrained network is then 1 at all of them."""
    return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2


def conditions(batch: BlockBatch) -> Tensor:
    """What the U-Net is given of each fine cell besides the noisy field, [B, N, V + F]."""
    n_cells, n_blocks = batch.y_BNV.shape[1], batch.geometry.n_blocks
    own_BNV = batch.coarse_BMV.repeat_interleave(n_cells // n_blocks, dim=1)
    static_BNF = batch.geometry.static_NF.expand(own_BNV.shape[0], -1, -1)
    return torch.cat([own_BNV, batch.features_BNF, static_BNF], dim=2)


def with_noise(config: Any, batch: BlockBatch, seeds: np.ndarray) -> BlockBatch:
    """`ModelSpec.add_noise`: noise and its levels, a function of each sample's seed alone.

    Drawn on the CPU, so that all devices train on the same noise.
    """
    levels, noise = [], []
    n_levels = batch.geometry.n_blocks if config.noise_levels == "block" else 1
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        levels.append(torch.randn(n_levels, generator=generator))
        noise.append(torch.randn(batch.y_BNV.shape[1:], generator=generator))
    sigma_BL = (config.noise_mean + config.noise_std * torch.stack(levels)).exp().to(batch.y_BNV)
    noise_BNV = to_device(torch.stack(noise), batch.y_BNV.device).to(batch.y_BNV)
    return replace(batch, sigma_BL=sigma_BL, noise_BNV=noise_BNV)


def recentred(x_BNV: Tensor, batch: BlockBatch) -> Tensor:
    """Take away the area-weighted mean of each block, so that the block means are conserved."""
    share_MK = batch.geometry.share_N.view(batch.geometry.n_blocks, -1).to(x_BNV.dtype)
    blocks = x_BNV.reshape(x_BNV.shape[0], *share_MK.shape, -1)
    mean = torch.einsum("bmkv,mk->bmv", blocks, share_MK)
    return (blocks - mean[:, :, None]).reshape(x_BNV.shape)


def predict(module: nn.Module, batch: BlockBatch) -> Tensor:
    """First guess of the sampler, [K, B, 1, V]: what the model expects before it has seen any noise."""
    sigma_B1 = torch.full_like(batch.weight_B, SIGMA_MAX)[:, None]
    estimate = module.denoised(torch.zeros_like(batch.y_BNV), sigma_B1, batch)  # type: ignore[operator]
    return as_fields(batch.geometry.own(recentred(estimate / SIGMA_DATA, batch)))


def denoising_loss(module: nn.Module, batch: BlockBatch, config: Any) -> Tensor:
    """`ModelSpec.loss`: weighted squared error of the denoiser, [B]; the loss block does not matter."""
    assert batch.sigma_BL is not None
    factor_BL = SIGMA_DATA * loss_weight(batch.sigma_BL).sqrt()
    return batch.geometry.mean(scaled(module(batch) - batch.y_BNV, factor_BL).square())


def check_levels(channels: tuple[int, ...], dataset: BlockDataset) -> None:
    """Raise `ConfigError` if a U-Net has not one number of channels for each level of the blocks."""
    if len(channels) != len(dataset.neighbours):
        raise ConfigError(
            f"model.channels {list(channels)}: expected {len(dataset.neighbours)} numbers, one for "
            "each level from the fine cells to the blocks"
        )


def _build(config: DownscalerConfig, dataset: BlockDataset) -> Downscaler:
    if config.architecture == "mlp":
        see(dataset, seen_beside, takes_features=False)
    else:
        check_levels(config.channels, dataset)
        see(dataset, partial(seen_by_unet, depth=config.depth))
    return Downscaler(config, dataset)


SPEC = ModelSpec(
    name="downscaler",
    config=DownscalerConfig,
    build=_build,
    predict=predict,
    loss=denoising_loss,
    add_noise=with_noise,
    recomputed=("net.encoder.*.*", "net.decoder.*.*"),
)
