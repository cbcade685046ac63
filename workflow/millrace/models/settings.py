"""The block ``train.loss`` of experiments, without torch."""

from typing import Literal

from millrace.config import Settings, option


class LossConfig(Settings):
    """What is minimised."""

    kind: Literal["relative_l2", "mse", "mae"] = "relative_l2"
    """`relative_l2`: error over size of the target, per node; `mse`: mean square in units of the typical
    change in one step, if nodes with small values should not weigh more, or if slow variables must count;
    `mae`: mean absolute error in these units, and for Aurora that of its paper, with `loss_weights`."""
    eps: float = option(0.1, gt=0, unit="standard deviations")
    """`relative_l2`: added to the norm of the target, so that a target near the mean state neither
    dominates the others nor causes a division by zero."""
    variance_weight: float = option(0.0, ge=0)
    """Weight of a second term: the root mean square error of `mass_concentration`, nodes weighted by
    how much it varies in the training period; 0.1 to 1 if the moving salt front is forecast badly."""
