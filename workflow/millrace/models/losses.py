"""Losses of fields at points, one value for each sample.

Shape suffixes: K points, B samples, T steps, V variables.
"""

from typing import Any

from torch import Tensor, nn

from millrace.errors import ConfigError
from millrace.models.settings import LossConfig


def field_loss(
    prediction_KBTV: Tensor,
    target_KBTV: Tensor,
    scale_V: Tensor,
    config: LossConfig,
    variance_weight_KV: Tensor,
) -> Tensor:
    """Loss of each sample, [B], averaged over points.

    ``relative_l2`` is ||error|| / (||target|| + eps) with norms over time and variables at one point.
    ``mse`` and ``mae`` are the mean squared and the mean absolute error in units of ``scale_V``, the
    typical change of each variable in one step: a variable that changes slowly counts as much as one that
    follows the tide.

    With a ``variance_weight`` the root mean square error of the concentration is added, each point weighted
    with ``variance_weight_KV``, see `millrace.systems.groundwater.variance`.

    Raises
    ------
    ConfigError
        The forecast has another shape than the target: it might be broadcast and learn nonsense silently.
    """
    if prediction_KBTV.shape != target_KBTV.shape:
        raise ConfigError(
            f"the model's forecast has the shape {tuple(prediction_KBTV.shape)}, the target "
            f"{tuple(target_KBTV.shape)}: points, samples, steps and variables must be the same"
        )
    error_KBTV = prediction_KBTV - target_KBTV
    if config.kind == "mae":
        loss_B = (error_KBTV / scale_V).abs().mean(dim=(0, 2, 3))
    elif config.kind == "mse":
        loss_B = (error_KBTV / scale_V).square().mean(dim=(0, 2, 3))
    else:
        # The root of an exact zero has no finite gradient.
        error_KB = (error_KBTV.square().sum(dim=(2, 3)) + 1e-12).sqrt()
        norm_KB = target_KBTV.square().sum(dim=(2, 3)).sqrt()
        n_values = target_KBTV.shape[2] * target_KBTV.shape[3]
        loss_B = (error_KB / (norm_KB + config.eps * n_values**0.5)).mean(dim=0)
    if config.variance_weight:
        weighted_KBTV = variance_weight_KV[:, None, None] * error_KBTV.square()
        mean_B = weighted_KBTV.sum(dim=3).mean(dim=(0, 2))
        loss_B = loss_B + config.variance_weight * (mean_B + 1e-8).sqrt()
    return loss_B


def forecast(module: nn.Module, batch: Any) -> Tensor:
    """`ModelSpec.predict` of models that forecast fields at points, [K, B, T, V]."""
    return module(batch)


def forecast_loss(module: nn.Module, batch: Any, config: LossConfig) -> Tensor:
    """`ModelSpec.loss` of models that forecast fields at points, [B]."""
    prediction = module(batch)
    return field_loss(prediction, batch.y_KBTV, batch.scale_V, config, batch.variance_weight_KV)
