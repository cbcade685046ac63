"""Losses on fields at points, one value a sample.

Shape suffixes: K points, B samples, T steps, V variables.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from millrace.errors import ConfigError

LOSSES = ("relative_l2", "mse", "mae")


@dataclass(frozen=True)
class LossConfig:
    """The ``train.loss`` block of an experiment."""

    kind: str = "relative_l2"
    eps: float = 0.1
    """Added to the norm of the target, in standard deviations: a target near the mean state must not
    outweigh all others (or divide by zero)."""
    variance_weight: float = 0.0
    """Weight of a second term, the error of the concentration where it changes most."""

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise ConfigError(f"train.loss.kind {self.kind!r}: expected one of {', '.join(LOSSES)}")


def field_loss(
    prediction_KBTV: Tensor,
    target_KBTV: Tensor,
    scale_V: Tensor,
    config: LossConfig,
    variance_weight_KV: Tensor,
) -> Tensor:
    """Loss of each sample, [B], averaged over points.

    ``relative_l2`` is ||error|| / (||target|| + eps), norms over time and variables of one point;
    ``mse`` is the mean squared error in units of ``scale_V``, the typical one-step change of each
    variable: a variable that changes slowly counts as much as one that swings with the tide; ``mae`` is the
    mean absolute error in these units.

    With a ``variance_weight`` the root of the mean square error of the concentration is added, each
    point weighted with ``variance_weight_KV``, see `millrace.systems.groundwater.variance`.
    """
    error_KBTV = prediction_KBTV - target_KBTV
    loss_B = _main_term(error_KBTV, target_KBTV, scale_V, config)
    if config.variance_weight:
        weighted_KBTV = variance_weight_KV[:, None, None] * error_KBTV.square()
        mean_B = weighted_KBTV.sum(dim=3).mean(dim=(0, 2))
        loss_B = loss_B + config.variance_weight * (mean_B + 1e-8).sqrt()
    return loss_B


def _main_term(
    error_KBTV: Tensor, target_KBTV: Tensor, scale_V: Tensor, config: LossConfig
) -> Tensor:
    if config.kind == "mae":
        return (error_KBTV / scale_V).abs().mean(dim=(0, 2, 3))
    if config.kind == "mse":
        return (error_KBTV / scale_V).square().mean(dim=(0, 2, 3))
    # The root of an exact zero has no finite gradient.
    error_KB = (error_KBTV.square().sum(dim=(2, 3)) + 1e-12).sqrt()
    norm_KB = target_KBTV.square().sum(dim=(2, 3)).sqrt()
    n_values = target_KBTV.shape[2] * target_KBTV.shape[3]
    return (error_KB / (norm_KB + config.eps * n_values**0.5)).mean(dim=0)


def forecast(module: nn.Module, batch: Any) -> Tensor:
    """`ModelSpec.predict` of models that forecast fields at points, [K, B, T, V]."""
    return module(batch)


def forecast_loss(module: nn.Module, batch: Any, config: LossConfig) -> Tensor:
    """`ModelSpec.loss` of models that forecast fields at points, [B]."""
    prediction = forecast(module, batch)
    return field_loss(prediction, batch.y_KBTV, batch.scale_V, config, batch.variance_weight_KV)
