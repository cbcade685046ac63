"""What the training engine knows of a model: nothing but a `ModelSpec`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Division:
    """How a model can be divided among processes: facts about its modules, nothing distributed.

    A model is a chain of units, submodules that are passed one after another. What passes between two of
    them are tensors with a leading axis of samples. How far it can be divided:
    `millrace.systems.base.DivisionLimits`.
    """

    units: Callable[[Any], list[str]]
    """module -> names of the units along the chain: what is sharded, and what stages are made of."""
    stage: Callable[[nn.Module, int, int, int, int], nn.Module]
    """(module, begin, end, step, steps) -> module that passes through units begin to end at one of the
    steps of a rollout; it takes what the stage before gave, and `inputs` by name."""
    costs: Callable[[Any], list[float]]
    """whole module -> how much work each unit is, in any unit."""
    drop: Callable[[Any, int], None]
    """(module, unit): remove the parameters of a unit; the others keep their names."""
    steps: Callable[[Any], int]
    """dataset -> steps of a rollout."""
    inputs: Callable[[Any], Mapping[str, Tensor]]
    """batch -> tensors that every stage gets, samples first."""
    loss: Callable[[nn.Module, Tensor, Any, Any], Tensor]
    """(module, output of the last stage, batch, loss config) -> loss of each sample, [B]."""
    pairs: Callable[[nn.Module], Sequence[tuple[str, str]]]
    """module -> names of linear layers of which the first can be cut by its outputs and the second by its
    inputs, with nothing but elementwise or headwise work between them."""
    packed: Callable[[nn.Module], Mapping[str, int]]
    """module -> linear layers whose outputs are queries, keys and values in one, and their heads."""
    half: Callable[[nn.Module], Sequence[str]]
    """module -> names of units that use their weights in nothing but linear layers: autocast rounds them to
    half precision anyway, so that they may be rounded before they are sent."""


@dataclass(frozen=True)
class ModelSpec:
    """One architecture, as the engine, the evaluation and the contract tests see it.

    A new model is one file with a `ModelSpec`, one line in the `system.py` of its field or in a plug-in,
    and an experiment in the configuration.
    """

    name: str
    config: type
    """Frozen dataclass of the model's parameters, which validates itself."""
    build: Callable[[Any, Any], nn.Module]
    """(config, dataset) -> module on one device, without any distributed code inside."""
    predict: Callable[[nn.Module, Any], Tensor]
    """(module, batch) -> forecast in normalised units, shaped like the batch's target."""
    loss: Callable[[nn.Module, Any, Any], Tensor]
    """(module, batch, loss config) -> loss of each sample, [B]; the engine weights and averages."""
    add_noise: Callable[[Any, Any, Any], Any] | None = None
    """(config, batch, seeds) -> batch with what a step draws at random, such as noise: a function of the
    seeds, int64[B], one for each sample. None: the model draws nothing."""
    continued: Callable[[nn.Module, Any, Any], tuple[Tensor, Tensor]] | None = None
    """(module, batch, loss config) -> `loss`, and the past states of the samples that follow on these
    forecasts, [B, ...]: what ``train.replay`` starts from. None: no sample follows on another."""
    blocks: tuple[str, ...] = ()
    """Submodules whose activations may be computed again instead of kept: those that hold most.
    A ``*`` stands for all submodules of that level."""
    bound: Mapping[str, str] = field(default_factory=dict)
    """Buffers that say what the model's numbers mean, such as a vocabulary, and what they are for messages:
    weights that were trained with other ones are refused."""
    division: Division | None = None
    """How it can be divided among processes; None: copies of it only."""
