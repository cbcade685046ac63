"""Learning-rate schedules as pure functions of the position in training.

None depends on the last epoch, so that asking for more epochs continues the same run: a schedule with
an end (``cosine``, the decay of ``wsd``) names that end itself.
"""

import math
from dataclasses import dataclass

from millrace.errors import ConfigError

SCHEDULES = ("constant", "exponential", "cosine", "wsd")


@dataclass(frozen=True)
class ScheduleConfig:
    """The ``train.schedule`` block of an experiment; all lengths are in epochs."""

    kind: str = "exponential"
    warmup: float = 0.0
    """Linear rise from zero, for every kind."""
    gamma: float = 0.95
    """``exponential``: factor per ``every``."""
    every: int = 5
    """``exponential``: epochs between two steps down."""
    horizon: float | None = None
    """``cosine``: where the half cosine reaches ``floor``; ``wsd``: where the decay does."""
    decay: float = 0.2
    """``wsd``: share of the horizon spent decaying, with the 1 - sqrt law."""
    floor: float = 0.0
    """``cosine`` and ``wsd``: factor from the horizon on."""

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ConfigError(
                f"train.schedule.kind {self.kind!r}: expected one of {', '.join(SCHEDULES)}"
            )
        if self.kind in ("cosine", "wsd") and (self.horizon or 0.0) <= self.warmup:
            raise ConfigError(
                f"train.schedule.horizon: {self.kind!r} needs the epoch at which it ends, after the "
                f"warm-up and independent of train.epochs, not {self.horizon}"
            )


def factor(config: ScheduleConfig, epoch: float) -> float:
    """Factor on the base learning rate.

    Parameters
    ----------
    config : ScheduleConfig
    epoch : float
        Position in epochs, fractional within one: step / steps per epoch.

    Notes
    -----
    ``exponential``: gamma ** floor(epoch / every). ``cosine``: Loshchilov & Hutter (2017), eq. 5 without
    restarts. ``wsd`` (warm-up, stable, decay): Hägele et al. (2024), arXiv:2405.18392, 1 - sqrt decay.
    """
    warm = min(1.0, epoch / config.warmup) if config.warmup > 0 else 1.0
    return warm * _after_warmup(config, epoch)


def _after_warmup(config: ScheduleConfig, epoch: float) -> float:
    if config.kind == "exponential":
        return config.gamma ** int(epoch // config.every)
    if config.kind == "constant":
        return 1.0
    assert config.horizon is not None  # checked by ScheduleConfig
    if config.kind == "cosine":
        progress = min(1.0, max(0.0, epoch - config.warmup) / (config.horizon - config.warmup))
        return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * progress))
    length = config.decay * config.horizon
    progress = min(1.0, max(0.0, epoch - (config.horizon - length)) / length)
    return config.floor + (1 - config.floor) * (1 - math.sqrt(progress))
