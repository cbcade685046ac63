"""Starting from the weights of another run: fine-tuning, transfer to another aquifer."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from millrace.errors import ConfigError
from millrace.training.config import InitFromConfig
from millrace.training.store import load_state, weights_of

_SHOWN = 3


def content_digest(checkpoint: Path) -> str:
    """Hash the weights that a checkpoint gives, 16 hexadecimal digits: not its path or history."""
    content = hashlib.sha256()
    for name, value in sorted(weights_of(load_state(checkpoint)).items()):
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def warm_start(
    module: nn.Module, config: InitFromConfig, bound: Mapping[str, str] | None = None
) -> None:
    """Give a module the parameters of a checkpoint, and freeze those that shall stay.

    Buffers, the scales of the new run's data, are left alone; those of `ModelSpec.bound` must be the same.

    Raises
    ------
    ConfigError
        Parameters are missing, unexpected or of another shape, or nothing is (or all is) frozen.
    DataError
        The checkpoint is not there or damaged.
    """
    weights = weights_of(load_state(Path(config.checkpoint)))
    # A layer that stands at two places has two names in the checkpoint.
    own = dict(module.named_parameters(remove_duplicate=False))
    problems = _mismatches(own, weights, {name for name, _ in module.named_buffers()})
    if problems:
        raise ConfigError(
            f"train.init_from.checkpoint: {config.checkpoint} does not fit the model: "
            f"{'; '.join(problems)}; give the model block of the run it comes from"
        )
    check_bound(module, weights, bound or {}, Path(config.checkpoint))
    with torch.no_grad():
        for name, parameter in own.items():
            if name in weights:
                parameter.copy_(weights[name])
    for prefix in config.freeze:
        frozen = [parameter for name, parameter in own.items() if name.startswith(prefix)]
        if not frozen:
            raise ConfigError(
                f"train.init_from.freeze: no parameter begins with {prefix!r}; they are "
                f"{', '.join(sorted(own))}"
            )
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in own.values()):
        raise ConfigError("train.init_from.freeze: leaves no parameter to train")


def check_bound(
    module: nn.Module, weights: Mapping[str, Tensor], bound: Mapping[str, str], checkpoint: Path
) -> None:
    """Make sure that weights were trained with a module's own `ModelSpec.bound`.

    Raises
    ------
    ConfigError
        They were not.
    """
    for name, what in bound.items():
        if not torch.equal(weights[name].cpu(), module.get_buffer(name).cpu()):
            raise ConfigError(
                f"{checkpoint}: its model was trained with another {what} than that of these samples; "
                "give samples that were made with the same one"
            )


def _mismatches(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], buffers: set[str]
) -> list[str]:
    missing = [name for name in own if name not in given and not _is_update(name)]
    unexpected = [name for name in given if name not in own and name not in buffers]
    shapes = [
        f"{name} (has {list(given[name].shape)}, needs {list(value.shape)})"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "shape": shapes}
    return [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]


def _is_update(name: str) -> bool:
    """Whether a parameter is of a low-rank update, which begins at zero (`train.init_from` adds it)."""
    return ".lora_" in name


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
