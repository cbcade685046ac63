"""The section ``train`` of an experiment, checked: what decides the weights, and how they are computed."""

from dataclasses import dataclass, field

from millrace.config import check_one_of
from millrace.errors import ConfigError
from millrace.models.settings import LossConfig
from millrace.training.schedules import ScheduleConfig

PRECISIONS = ("float32", "bfloat16", "float16")
COMPRESSIONS = ("none", "bfloat16", "float16")
LOGGERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """The section ``train.early_stopping``: when training ends before its last epoch."""

    patience: int
    """Epochs without a better validation loss after which training stops."""
    min_delta: float = 0.0
    """A validation loss is better if it is lower by more than this."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0:
            raise ConfigError(
                "train.early_stopping: expected a patience of 1 or more epochs and a min_delta of 0 or more"
            )


@dataclass(frozen=True)
class InitFromConfig:
    """The section ``train.init_from``: start from the weights of another run."""

    checkpoint: str
    freeze: tuple[str, ...] = ()
    """Parameters whose names begin with one of these prefixes keep their values."""


@dataclass(frozen=True)
class ReplayConfig:
    """The section ``train.replay``: samples that start from forecasts."""

    longest: int
    """Longest lead time that the model is trained on, in states from the data."""
    fresh: float = 0.25
    """Probability that a sample starts from data although the buffer holds a forecast for it."""
    depth: int = 2
    """Forecasts kept for each sample of a batch."""

    def __post_init__(self) -> None:
        if self.longest < 2 or self.depth < 1:
            raise ConfigError(
                "train.replay: expected a longest lead of 2 or more states and a depth of 1 or more, got "
                f"{self.longest} and {self.depth}"
            )
        if not 0 < self.fresh < 1:
            raise ConfigError(f"train.replay.fresh: expected between 0 and 1, got {self.fresh}")


@dataclass(frozen=True)
class TrainConfig:
    """The keys of the section ``train`` that decide the weights: part of a run's definition."""

    global_batch: int
    """Samples of an optimiser step over all ranks, the same for every layout."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None: no clipping."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    precision: str = "float32"
    """Of the layers; weights, spectral layers, sums over neighbours and the loss stay in float32."""
    ema: float | None = None
    """Decay of the exponential moving average of the weights; None: no average."""
    early_stopping: EarlyStoppingConfig | None = None
    keep_best: bool = False
    """Keep the weights of the epoch with the lowest validation loss, and evaluate those."""
    gradient_compression: str = "none"
    """Number format in which ranks exchange gradients."""
    init_from: InitFromConfig | None = None
    replay: ReplayConfig | None = None
    """Start some of the samples from the model's own forecasts; None: all start from data."""

    def __post_init__(self) -> None:
        check_one_of("train.precision", self.precision, PRECISIONS)
        check_one_of("train.gradient_compression", self.gradient_compression, COMPRESSIONS)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"train.ema: expected a decay between 0 and 1, got {self.ema}")


@dataclass(frozen=True)
class ProfileConfig:
    """The section ``train.profile``: which optimiser steps are traced."""

    start: int
    """Number of steps before the first traced one; a session that resumes later traces nothing."""
    steps: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.steps < 1:
            raise ConfigError("train.profile: expected a start of 0 or more and 1 or more steps")


@dataclass(frozen=True)
class ExecutionConfig:
    """The keys of the section ``train`` that say how the weights are computed and what is reported.

    They may change during a run, like its layout: results agree to rounding.
    """

    micro_batch: int | None = None
    """Samples that a rank processes at once; None: its whole share of a batch."""
    compile: bool = False
    activation_checkpointing: bool = False
    """Recompute the activations of the model's large parts in the backward pass."""
    profile: ProfileConfig | None = None
    log: tuple[str, ...] = ()
    """Where epochs are reported besides ``metrics.jsonl``."""

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ConfigError(f"train.micro_batch: expected 1 or more, got {self.micro_batch}")
        for name in self.log:
            check_one_of("train.log", name, LOGGERS)
