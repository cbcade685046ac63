"""Learning-rate schedules as pure functions of the position in training.

None depends on the last epoch, so that more epochs continue the same run: a schedule with an end
(``cosine``, the decay of ``wsd``) has a key for that end.
"""

import math
from typing import Any, Literal

from millrace.config import Count, Positive, Settings, option


class ScheduleConfig(Settings):
    """A factor on `learning_rate`. None depends on `epochs`, so that more epochs continue the same run.

    All lengths are in epochs, and may be fractions where the type is a number.
    """

    kind: Literal["constant", "exponential", "cosine", "wsd"] = "exponential"
    """`wsd` (warm-up, stable, decay) or `cosine` if you know when to stop."""
    warmup: float = option(0.0, ge=0, unit="epochs")
    """Linear rise from 0, for every kind; if the loss jumps at the start."""
    gamma: float = option(0.95, gt=0, le=1)
    """`exponential`: factor at each step down."""
    every: Count = option(5, unit="epochs")
    """`exponential`: between two steps down."""
    horizon: Positive | None = option(None, unit="epochs")
    """`cosine`, `wsd`: where the fall ends and `floor` is reached; required for them, after the warm-up.
    Equal to the epochs you plan."""
    decay: float = option(0.2, gt=0, le=1)
    """`wsd`: share of the horizon spent falling, with the 1 - sqrt law."""
    floor: float = option(0.0, ge=0, le=1)
    """`cosine`, `wsd`: factor from the horizon on; above 0 to train on."""

    def model_post_init(self, _: Any) -> None:
        """Check that a schedule with an end has one."""
        if self.kind in ("cosine", "wsd") and (self.horizon or 0.0) <= self.warmup:
            raise ValueError(
                f"horizon: {self.kind!r} needs the epoch at which it ends, after the warm-up and "
                f"independent of train.epochs, not {self.horizon}"
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
