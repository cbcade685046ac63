"""What the engine knows of Aurora."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from millrace.models.losses import field_loss
from millrace.models.settings import LossConfig
from millrace.models.spec import Division, ModelSpec
from millrace.systems.weather.aurora.config import AuroraConfig
from millrace.systems.weather.aurora.conventions import (
    published_encodings,
    published_static,
    to_published,
)
from millrace.systems.weather.aurora.encodings import place_encodings
from millrace.systems.weather.aurora.loss import channel_weights, weighted_mae
from millrace.systems.weather.aurora.model import (
    Aurora,
    AuroraPart,
    check_grid,
    drop,
    stage_inputs,
    unit_costs,
    unit_names,
)
from millrace.systems.weather.aurora.perceiver import Grid
from millrace.systems.weather.aurora.published import adopt
from millrace.systems.weather.aurora.swin import SwinBlock
from millrace.systems.weather.dataset import WeatherBatch, WeatherDataset, as_points
from millrace.systems.weather.grids import goes_round


def _build(config: AuroraConfig, dataset: WeatherDataset) -> Aurora:
    check_grid(config, dataset.shape)
    sizes = (config.patch_size, config.embed_dim)
    is_published = config.conventions == "published"
    encodings = published_encodings if is_published else place_encodings
    grid = Grid(
        *encodings(dataset.latitude, dataset.longitude, *sizes),
        level_L=torch.tensor(dataset.levels, dtype=torch.float64, device="cpu"),
        static_FIJ=published_static(dataset) if is_published else torch.from_numpy(dataset.static),
        surface=len(dataset.surface),
        air=len(dataset.air),
        hours=dataset.step_hours,
        periodic=goes_round(dataset.longitude),
        to_published_2C=torch.stack(to_published(dataset)) if is_published else None,
    )
    scale_C = torch.from_numpy(dataset.increment_scale)
    model = Aurora(config, grid, dataset.shape, dataset.config.input_steps, scale_C)
    n_levels, kind = len(dataset.levels), config.loss_weights
    weight_C = channel_weights(dataset.surface, dataset.air, n_levels, kind)
    model.register_buffer("loss_weight_C", weight_C, persistent=False)
    return model


def _predict(module: nn.Module, batch: WeatherBatch) -> Tensor:
    return as_points(module(batch))


def _loss(module: nn.Module, batch: WeatherBatch, config: LossConfig) -> Tensor:
    return _scored(module, batch, config)[0]


def _continued(module: nn.Module, batch: WeatherBatch, config: LossConfig) -> tuple[Tensor, Tensor]:
    loss_B, forecast_BKCIJ = _scored(module, batch, config)
    states = torch.cat([batch.past_BTCIJ, forecast_BKCIJ], dim=1)
    return loss_B, states[:, -batch.past_BTCIJ.shape[1] :]


def _scored(module: nn.Module, batch: WeatherBatch, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Loss of each sample, and the forecast."""
    core = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
    forecast_BKCIJ = module(batch)
    return _loss_of_forecast(core, forecast_BKCIJ, batch, config), forecast_BKCIJ


def _loss_of_forecast(
    module: nn.Module, forecast_BKCIJ: Tensor, batch: WeatherBatch, config: LossConfig
) -> Tensor:
    if config.kind == "mae":
        return weighted_mae(forecast_BKCIJ, batch.y_BKCIJ, module.get_buffer("loss_weight_C"))
    points = as_points(forecast_BKCIJ)
    return field_loss(points, batch.y_KBTV, batch.scale_V, config, batch.variance_weight_KV)


def _stage(module: nn.Module, begin: int, end: int, step: int, steps: int) -> nn.Module:
    assert isinstance(module, Aurora)
    return AuroraPart(module, begin, end, step, steps)


def _blocks(module: nn.Module) -> dict[str, SwinBlock]:
    """Swin blocks by name; encoder, decoder and what joins resolutions hold norms and embeddings too."""
    return {name: one for name, one in module.named_modules() if isinstance(one, SwinBlock)}


def _packed(module: nn.Module) -> Mapping[str, int]:
    """Packed projections of queries, keys and values, and their heads."""
    attentions = {name: block.attention for name, block in _blocks(module).items()}
    return {f"{n}.attention.qkv": a.proj.in_features // a.head_dim for n, a in attentions.items()}


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    pairs = (("attention.qkv", "attention.proj"), ("mlp.fc1", "mlp.fc2"))
    return [(f"{name}.{a}", f"{name}.{b}") for name in _blocks(module) for a, b in pairs]


SPEC = ModelSpec(
    name="aurora",
    config=AuroraConfig,
    build=_build,
    predict=_predict,
    loss=_loss,
    continued=_continued,
    published=adopt,
    recomputed=("encoder", "encoder.aggregation", "blocks.*", "decoder", "decoder.aggregation"),
    division=Division(
        units=unit_names,
        stage=_stage,
        costs=unit_costs,
        drop=drop,
        steps=lambda dataset: dataset.config.output_steps,
        inputs=stage_inputs,
        loss=_loss_of_forecast,
        pairs=_pairs,
        packed=_packed,
        rounded=lambda module: [*_blocks(module)],
    ),
)
