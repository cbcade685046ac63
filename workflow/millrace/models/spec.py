"""`ModelSpec`: all that the training engine knows about a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from millrace.config import Settings
from millrace.models.native import Kernels


@dataclass(frozen=True)
class Division:
    """How a model can be divided among processes: facts about its modules, without distributed code.

    A model is a chain of units, submodules that are applied one after another. Only tensors with a leading
    axis of samples pass from one unit to the next. How far it can be divided says
    `millrace.systems.base.DivisionLimits`.
    """

    units: Callable[[Any], list[str]]
    """module -> names of the units along the chain, which are sharded and grouped into stages."""
    stage: Callable[[nn.Module, int, int, int, int], nn.Module]
    """(module, begin, end, step, steps) -> module that applies units ``begin`` to ``end`` in one of the
    ``steps`` of a rollout; its arguments are the outputs of the stage before, and `inputs` by name."""
    costs: Callable[[Any], list[float]]
    """whole module -> relative computing time of each unit."""
    drop: Callable[[Any, int], None]
    """(module, unit): remove the parameters of a unit; the others keep their names."""
    steps: Callable[[Any], int]
    """dataset -> steps of a rollout."""
    inputs: Callable[[Any], Mapping[str, Tensor]]
    """batch -> tensors that every stage takes, samples first."""
    loss: Callable[[nn.Module, Tensor, Any, Any], Tensor]
    """(module, output of the last stage, batch, loss config) -> loss of each sample, [B]."""
    pairs: Callable[[nn.Module], Sequence[tuple[str, str]]]
    """module -> names of pairs of linear layers, the first to be cut along its outputs and the second along
    its inputs: all operations between them are elementwise or per head."""
    packed: Callable[[nn.Module], Mapping[str, int]]
    """module -> linear layers that compute queries, keys and values in one, and their numbers of heads."""
    rounded: Callable[[nn.Module], Sequence[str]]
    """module -> names of units whose weights are used in linear layers only. Autocast rounds these weights
    to half precision, so that they may be rounded before they are sent."""


@dataclass(frozen=True)
class Adopted:
    """Weights that others published, as a module of ours takes them."""

    weights: Mapping[str, Tensor]
    """By parameter; the others stay as they are."""
    changed: dict[str, str]
    """What was not taken as it is -> how it was changed."""
    new: dict[str, str]
    """What begins anew -> why."""
    left_out: list[str]
    """Names in the file of what the module does not need."""


@dataclass(frozen=True)
class ModelSpec:
    """One architecture, as the engine, the evaluation and the contract tests see it.

    A new model is one file with a `ModelSpec`, one line in the `system.py` of its field or in a plug-in,
    and an experiment in the configuration.
    """

    name: str
    config: type[Settings]
    """The model's parameters."""
    build: Callable[[Any, Any], nn.Module]
    """(config, dataset) -> module on one device, without any distributed code."""
    predict: Callable[[nn.Module, Any], Tensor]
    """(module, batch) -> forecast in normalised units, with the shape of the batch's target."""
    loss: Callable[[nn.Module, Any, Any], Tensor]
    """(module, batch, loss config) -> loss of each sample, [B]; the engine weights and averages them."""
    add_noise: Callable[[Any, Any, Any], Any] | None = None
    """(config, batch, seeds) -> batch with the random numbers of a step, such as noise: a function of the
    seeds, int64[B], one for each sample. None: the model uses no random numbers."""
    continued: Callable[[nn.Module, Any, Any], tuple[Tensor, Tensor]] | None = None
    """(module, batch, loss config) -> `loss`, and the past states of the samples that follow these
    forecasts, [B, ...], from which ``train.replay`` starts. None: samples do not follow each other."""
    recomputed: tuple[str, ...] = ()
    """Submodules whose activations may be recomputed in the backward pass instead of kept: those with the
    most memory. A ``*`` stands for all submodules of that level."""
    matching_buffers: Mapping[str, str] = field(default_factory=dict)
    """Buffers that define the meaning of the model's numbers, such as a vocabulary, with a description for
    error messages: weights that were trained with other values of them are refused."""
    published: Callable[[Any, nn.Module, Any, Mapping[str, Tensor]], Adopted] | None = None
    """(config, module, dataset, weights by the names of a published file) -> what the module takes of them,
    for ``train.init_from.published``; raises `ConfigError` if they are of another network. None: no weights
    are published."""
    check: Callable[[Any, torch.device], None] | None = None
    """(config, device): raises `ConfigError` if the model cannot be trained there. None: it can."""
    kernels: Kernels | None = None
    """With which the model computes on a CPU."""
    division: Division | None = None
    """How the model can be divided among processes; None: each process has a replica."""
