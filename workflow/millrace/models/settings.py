"""The section ``train.loss`` of experiments, without torch."""

from dataclasses import dataclass

from millrace.config import check_one_of

LOSSES = ("relative_l2", "mse", "mae")


@dataclass(frozen=True)
class LossConfig:
    """The section ``train.loss`` of an experiment."""

    kind: str = "relative_l2"
    eps: float = 0.1
    """Added to the norm of the target, in standard deviations, so that a target near the mean state neither
    dominates the others nor causes a division by zero."""
    variance_weight: float = 0.0
    """Weight of a second term, the error of the concentration where it changes most."""

    def __post_init__(self) -> None:
        check_one_of("train.loss.kind", self.kind, LOSSES)
