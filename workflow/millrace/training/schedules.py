"""Learning-rate schedules as pure functions of the position in training.

None depends on the last epoch, so that more epochs continue the same run: a schedule with an end
(``cosine``, the decay of ``wsd``) has a key for that end.
"""

import math
from dataclasses import dataclass

from millrace.config import check_one_of
from millrace.errors import ConfigError

SCHEDULES = ("constant", "exponential", "cosine", "wsd")


@dataclass(frozen=True)
class ScheduleConfig:
    """The section ``train.schedule`` of an experiment; all lengths are in epochs."""

    kind: str = "exponential"
    warmup: float = 0.0
    """Length of the linear rise from zero, for every kind."""
    gamma: float = 0.95
    """``exponential``: factor per ``every``."""
    every: int = 5
    """``exponential``: epochs between two steps down."""
    horizon: float | None = None
    """``cosine`` and ``wsd``: epoch at which ``floor`` is reached."""
    decay: float = 0.2
    """``wsd``: part of the horizon at its end in which the rate decays, with the 1 - sqrt law."""
    floor: float = 0.0
    """``cosine`` and ``wsd``: factor from the horizon on."""

    def __post_init__(self) -> None:
        check_one_of("train.schedule.kind", self.kind, SCHEDULES)
        if self.kind in ("cosine", "wsd") and (self.horizon or 0.0) <= self.warmup:
            raise ConfigError(
                f"train.schedule.horizon: {self.kind!r} needs the epoch at which it ends, after the "
                f"warm-up and independent of train.epochs, not {self.horizon}"
            )


def factor(config: ScheduleConfig, epoch: float) -> float:
    """Factor on the base learning rate at a position in epochs: step / steps per epoch.

    ``exponential``: gamma ** floor(epoch / every). ``cosine``: Loshchilov & Hutter (2017), eq. 5 without
    restarts. ``wsd`` (warm-up, stable, decay): Hägele et al. (2024), arXiv:2405.18392, 1 - sqrt decay.
    """
    warm = min(1.0, epoch / config.warmup) if config.warmup > 0 else 1.0
    if config.kind == "constant":
        return warm
    if config.kind == "exponential":
        return warm * config.gamma ** int(epoch // config.every)
    assert config.horizon is not None  # checked by ScheduleConfig
    is_cosine = config.kind == "cosine"
    length = config.horizon - config.warmup if is_cosine else config.decay * config.horizon
    begin = config.warmup if is_cosine else config.horizon - length
    progress = min(1.0, max(0.0, epoch - begin) / length)
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if is_cosine else 1 - math.sqrt(progress)
    return warm * (config.floor + (1 - config.floor) * fall)
