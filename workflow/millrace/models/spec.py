"""What the training engine knows of a model: nothing but a `ModelSpec`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class ModelSpec:
    """One architecture, as the engine, the evaluation and the contract tests see it.

    A new model is one file with a `ModelSpec`, one line in `millrace.models.registry`, and an
    experiment in the configuration.
    """

    name: str
    config: type
    """Frozen dataclass of the model's parameters, which validates itself."""
    view: str
    """Kind of samples it takes, a key of `millrace.data.views.VIEWS`."""
    build: Callable[[Any, Any], nn.Module]
    """(config, view) -> module on one device, without any distributed code inside."""
    predict: Callable[[nn.Module, Any], Tensor]
    """(module, batch) -> forecast in normalised units, shaped like the batch's target."""
    loss: Callable[[nn.Module, Any, Any], Tensor]
    """(module, batch, loss config) -> loss of each sample, [B]; the engine weights and averages."""
    randomise: Callable[[Any, Any, Any], Any] | None = None
    """(config, batch, seeds) -> batch with what a step draws at random, such as noise: a function of the
    seeds, int64[B], one for each sample. None: the model draws nothing."""
    blocks: tuple[str, ...] = ()
    """Submodules whose activations may be computed again instead of kept: those that hold most."""
