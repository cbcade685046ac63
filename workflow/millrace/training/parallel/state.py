"""States of a run that fit any division: tensors under the names of the undivided model.

The tensors are full, as a single process writes them, or in shards: each process writes and reads its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from millrace.models.stored import restored
from millrace.training.parallel.shards import MOMENTS

if TYPE_CHECKING:
    from millrace.training.parallel.divided import DividedModel

_OF_PROCESS = ("params", "fused")
"""Of an optimiser's groups, what is not taken from a checkpoint: it does not decide the weights."""


def local_weights(module: nn.Module, divided: "DividedModel | None") -> dict[str, Tensor]:
    """Weights and buffers by name, as far as this process holds them."""
    if divided is None:
        # Tensors only: library models add metadata that may hold code.
        state = module.state_dict()
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], divided: "DividedModel | None"
) -> None:
    """Load full weights into a module."""
    if divided is None:
        module.load_state_dict(state)
        return
    for name, parameter in module.named_parameters():
        divided.fill(parameter, name, state[name])


def load_full_state(
    state: Mapping[str, Any],
    optimizer: Optimizer,
    module: nn.Module,
    names: Sequence[str],
    divided: "DividedModel | None",
) -> dict[str, dict[str, Tensor]]:
    """Continue from a state with full tensors; returns its other kinds of weights.

    ``names`` are the trained parameters, in the order of the optimiser's state. Of ``ema_model`` and
    ``best_model`` this process gets what it holds.
    """
    load_weights(module, state["model"], divided)
    others = {kind: state[kind] for kind in ("ema_model", "best_model") if kind in state}
    saved = state["optimizer"]
    if divided is None:
        optimizer.load_state_dict(_fitting(saved, optimizer, module, names))
        return others

    def part_of(full: Tensor, name: str, parameter: Tensor) -> Tensor:
        part = torch.zeros_like(parameter).detach()
        divided.fill(part, name, full)
        return part

    parameters = dict(module.named_parameters())
    for group in optimizer.param_groups:
        group |= {k: v for k, v in saved["param_groups"][0].items() if k not in _OF_PROCESS}
    for number, name in enumerate(names):
        if name in parameters and number in saved["state"]:
            own, moments = optimizer.state[parameters[name]], saved["state"][number]
            own["step"] = moments["step"].clone()
            for key in MOMENTS:
                own[key] = part_of(moments[key], name, parameters[name])
    return {
        kind: {name: part_of(values[name], name, p) for name, p in parameters.items()}
        for kind, values in others.items()
    }


def _fitting(
    saved: Mapping[str, Any], optimizer: Optimizer, module: nn.Module, names: Sequence[str]
) -> dict[str, Any]:
    """The state of an optimiser with moments in the form of the parameters, and computed as now."""
    moments = {
        number: {
            key: restored(module, {names[number]: value})[names[number]]
            if key in MOMENTS
            else value
            for key, value in state.items()
        }
        for number, state in saved["state"].items()
    }
    own = {"fused": optimizer.param_groups[0]["fused"]}
    return {"state": moments, "param_groups": [group | own for group in saved["param_groups"]]}


def sharded_state(
    weights: Mapping[str, Mapping[str, Tensor]],
    optimizer: Optimizer,
    names: Sequence[str],
    divided: "DividedModel",
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split a state into a description, on the first process, and the tensors of this process.

    ``weights`` are by kind those of `local_weights`; ``names`` are the trained parameters.
    """
    parameters = divided.module.named_parameters()
    mine = {n: optimizer.state.get(p, {}) for n, p in parameters if p.requires_grad}
    steps = divided.ranks.gather({n: float(s["step"]) for n, s in mine.items() if "step" in s})
    moments = {key: {n: s[key] for n, s in mine.items() if key in s} for key in MOMENTS}
    facts = {
        "trained": list(names),
        "steps": {name: step for part in steps for name, step in part.items()},
        "group": {k: v for k, v in optimizer.param_groups[0].items() if k not in _OF_PROCESS},
        "weights": list(weights),
        "names": divided.names,
    }
    tensors = {
        f"{kind}/{name}": divided.portable(value, name)
        for kind, values in {**weights, **moments}.items()
        for name, value in values.items()
    }
    return {"sharded": facts}, tensors


def load_sharded_state(
    state: Mapping[str, Any], optimizer: Optimizer, divided: "DividedModel"
) -> dict[str, dict[str, Tensor]]:
    """Continue from a `sharded_state` of any division; returns the other kinds of weights.

    ``state["shards"]`` is the directory of the tensors.
    """
    from millrace.training.parallel.checkpoints import load_into

    facts, parameters = state["sharded"], dict(divided.module.named_parameters())
    others: dict[str, dict[str, Tensor]] = {
        kind: {name: torch.zeros_like(p).detach() for name, p in parameters.items()}
        for kind in facts["weights"]
        if kind != "model"
    }
    moments: dict[str, dict[str, Tensor]] = {key: {} for key in MOMENTS}
    for group in optimizer.param_groups:
        group |= {k: v for k, v in facts["group"].items() if k not in _OF_PROCESS}
    for name, parameter in parameters.items():
        if name in facts["steps"]:
            own = optimizer.state[parameter]
            own["step"] = torch.tensor(facts["steps"][name])
            for key in MOMENTS:
                own[key] = moments[key][name] = torch.zeros_like(parameter).detach()
    weights = local_weights(divided.module, divided)
    wanted = {
        (kind, name): value
        for kind, values in {**others, **moments, "model": weights}.items()
        for name, value in values.items()
    }
    targets = {key: divided.target(value, key[1]) for key, value in wanted.items()}
    load_into({"/".join(key): target for key, target in targets.items()}, Path(state["shards"]))
    for place, target in targets.items():
        if target is not wanted[place]:
            divided.fill(wanted[place], place[1], target)
    return others
