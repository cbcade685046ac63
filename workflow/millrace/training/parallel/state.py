"""States of a run that fit any division: whole tensors under the names of the undivided model.

The optimiser's state is that of `torch.optim` with all parameters in one group, in the order of the
undivided model: what a single process would write.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from millrace.training.parallel.divided import Divided


def gathered(module: nn.Module, divided: Divided | None) -> dict[str, Tensor]:
    """Weights and buffers by name, on the first process; to be called on all."""
    if divided is None:
        # Tensors only: library models add metadata that may hold code.
        state = module.state_dict()
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}
    found = divided.gather(_present(module))
    return {name: found[name] for name in divided.names} if found else {}


def load_weights(module: nn.Module, state: Mapping[str, Tensor], divided: Divided | None) -> None:
    """Take weights that `gathered` gave, whatever the division then."""
    if divided is None:
        module.load_state_dict(state)
        return
    for name, parameter in _present(module).items():
        divided.fill(parameter, name, state[name])


def optimizer_state(
    optimizer: Optimizer, module: nn.Module, names: Sequence[str], divided: Divided | None
) -> dict[str, Any]:
    """State of the optimiser for all trained parameters ``names``, on the first process."""
    if divided is None:
        return optimizer.state_dict()
    mine = {n: optimizer.state.get(p, {}) for n, p in _present(module).items() if p.requires_grad}
    steps = divided.ranks.gather(
        {n: float(state["step"]) for n, state in mine.items() if "step" in state}
    )
    moments = {
        key: divided.gather({n: state[key] for n, state in mine.items() if key in state})
        for key in ("exp_avg", "exp_avg_sq")
    }
    if not divided.ranks.is_first:
        return {}
    step_of = {name: step for part in steps for name, step in part.items()}
    state = {
        number: {
            "step": torch.tensor(step_of[name]),
            **{key: values[name] for key, values in moments.items()},
        }
        for number, name in enumerate(names)
        if name in step_of
    }
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    return {"state": state, "param_groups": [{**group, "params": list(range(len(names)))}]}


def load_optimizer(
    optimizer: Optimizer,
    state: Mapping[str, Any],
    module: nn.Module,
    names: Sequence[str],
    divided: Divided | None,
) -> None:
    """Continue from `optimizer_state`, whatever the division then."""
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
        for key in ("exp_avg", "exp_avg_sq"):
            own[key] = torch.zeros_like(parameter)
            divided.fill(own[key], name, saved[key])


def _present(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters())
