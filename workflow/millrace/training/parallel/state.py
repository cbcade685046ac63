"""States of a run that fit any division: tensors under the names of the undivided model.

They are whole, as a single process writes them, or in shards: each process writes and reads its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from millrace.training.parallel.checkpoints import MOMENTS, load_into
from millrace.training.parallel.divided import Divided


def held(module: nn.Module, divided: Divided | None) -> dict[str, Tensor]:
    """Weights and buffers by name, as far as this process has them."""
    if divided is None:
        # Tensors only: library models add metadata that may hold code.
        state = module.state_dict()
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: parameter.detach() for name, parameter in _present(module).items()}


def load_whole(
    state: Mapping[str, Any],
    optimizer: Optimizer,
    module: nn.Module,
    names: Sequence[str],
    divided: Divided | None,
) -> dict[str, dict[str, Tensor]]:
    """Continue from a state with whole tensors; gives what this process holds of the other weights."""
    load_weights(module, state["model"], divided)
    load_optimizer(optimizer, state["optimizer"], module, names, divided)
    others = {kind: state[kind] for kind in ("ema_model", "best_model") if kind in state}
    if divided is None:
        return others
    parts = {kind: _empty(module) for kind in others}
    for kind, values in parts.items():
        for name, part in values.items():
            divided.fill(part, name, others[kind][name])
    return parts


def load_weights(module: nn.Module, state: Mapping[str, Tensor], divided: Divided | None) -> None:
    """Take whole weights."""
    if divided is None:
        module.load_state_dict(state)
        return
    for name, parameter in _present(module).items():
        divided.fill(parameter, name, state[name])


def sharded(
    weights: Mapping[str, Mapping[str, Tensor]],
    optimizer: Optimizer,
    module: nn.Module,
    names: Sequence[str],
    divided: Divided,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A state in shards: what describes it, on the first process, and this process's tensors.

    Parameters
    ----------
    weights : mapping
        Kind of weights -> what `held` gives of them.
    optimizer, module
    names : sequence of str
        Trained parameters.
    divided : Divided
    """
    facts, moments = _optimizer_facts(optimizer, module, names, divided)
    tensors = {
        f"{kind}/{name}": divided.portable(value, name)
        for kind, values in {**weights, **moments}.items()
        for name, value in values.items()
    }
    return {"sharded": facts | {"weights": list(weights), "names": divided.names}}, tensors


def load_sharded(
    state: Mapping[str, Any], optimizer: Optimizer, module: nn.Module, divided: Divided
) -> dict[str, dict[str, Tensor]]:
    """Continue from `sharded`, whatever the division then; gives the other kinds of weights.

    ``state["shards"]`` is the directory of the tensors.
    """
    facts, present = state["sharded"], _present(module)
    steps = facts["steps"]
    parts: dict[str, dict[str, Tensor]] = {
        kind: _empty(module) for kind in facts["weights"] if kind != "model"
    }
    moments: dict[str, dict[str, Tensor]] = {key: {} for key in MOMENTS}
    for group in optimizer.param_groups:
        group |= facts["group"]
    for name, parameter in present.items():
        if name in steps:
            own = optimizer.state[parameter]
            own["step"] = torch.tensor(steps[name])
            for key in MOMENTS:
                own[key] = moments[key][name] = torch.zeros_like(parameter).detach()
    wanted = {
        (kind, name): value
        for kind, values in {**parts, **moments, "model": held(module, divided)}.items()
        for name, value in values.items()
    }
    targets = {key: divided.target(value, key[1]) for key, value in wanted.items()}
    load_into({"/".join(key): target for key, target in targets.items()}, Path(state["shards"]))
    for place, target in targets.items():
        if target is not wanted[place]:
            divided.fill(wanted[place], place[1], target)
    return parts


def _optimizer_facts(
    optimizer: Optimizer, module: nn.Module, names: Sequence[str], divided: Divided
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Plain values of the optimiser, on the first process, and the moments of this one."""
    mine = {n: optimizer.state.get(p, {}) for n, p in _present(module).items() if p.requires_grad}
    steps = divided.ranks.gather({n: float(s["step"]) for n, s in mine.items() if "step" in s})
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    facts = {
        "trained": list(names),
        "steps": {name: step for part in steps for name, step in part.items()},
        "group": group,
    }
    return facts, {key: {n: s[key] for n, s in mine.items() if key in s} for key in MOMENTS}


def load_optimizer(
    optimizer: Optimizer,
    state: Mapping[str, Any],
    module: nn.Module,
    names: Sequence[str],
    divided: Divided | None,
) -> None:
    """Continue from the state of an optimiser that has all parameters, in the order of ``names``."""
    if divided is None:
        optimizer.load_state_dict(dict(state))
        return
    for group in optimizer.param_groups:
        group |= {k: v for k, v in state["param_groups"][0].items() if k != "params"}
    number_of = {name: number for number, name in enumerate(names)}
    for name, parameter in _present(module).items():
        saved = state["state"].get(number_of.get(name))
        if saved is None:
            continue
        own = optimizer.state[parameter]
        own["step"] = saved["step"].clone()
        for key in MOMENTS:
            own[key] = torch.zeros_like(parameter)
            divided.fill(own[key], name, saved[key])


def _present(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters())


def _empty(module: nn.Module) -> dict[str, Tensor]:
    """Tensors cut like the parameters, to be filled."""
    return {name: torch.zeros_like(p).detach() for name, p in _present(module).items()}
