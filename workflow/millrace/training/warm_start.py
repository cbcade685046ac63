"""Starting from the weights of another run: fine-tuning, transfer to another aquifer."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from millrace.errors import ConfigError, DataError, listed
from millrace.input_files import SMALL
from millrace.models.stored import restored
from millrace.training.config import InitFromConfig
from millrace.training.store import load_state, weights_of


def content_digest(checkpoint: Path) -> str:
    """Hash the weights of a checkpoint, not its path or history; 16 hexadecimal digits."""
    content = hashlib.sha256()
    for name, value in sorted(_weights(checkpoint).items()):
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    """Weights of a checkpoint that may come from anywhere; raises `DataError` if it holds none."""
    state = load_state(checkpoint)
    weights: Any = weights_of(state) if "model" in state else None
    for name, value in weights.items() if isinstance(weights, dict) else [("", weights)]:
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise DataError(
                f"{checkpoint}: its weights are no tensors; give a checkpoint of Millrace"
            )
        # The shape of a view can be of any size.
        if value.layout != torch.strided or value.nbytes > max(
            SMALL, value.untyped_storage().nbytes()
        ):
            raise DataError(
                f"{checkpoint}: {name!r} is declared as {' x '.join(map(str, value.shape))} values, which "
                "the file does not hold; copy or write it again"
            )
    return dict(weights)


def warm_start(
    module: nn.Module, config: InitFromConfig, matching_buffers: Mapping[str, str]
) -> None:
    """Load the parameters of a checkpoint into a module, and freeze those of ``config.freeze``.

    Buffers are those of the new run's data and stay; ``matching_buffers`` are as in `ModelSpec` and must be
    equal in the checkpoint. Raises `ConfigError` if parameters are missing, unexpected or of another shape,
    a prefix of ``freeze`` matches none, or all are frozen; and `DataError` if the checkpoint is missing or
    damaged.
    """
    weights = _weights(Path(config.checkpoint))
    # A layer that is used at two places has two names in the checkpoint.
    own = dict(module.named_parameters(remove_duplicate=False))
    stored = {name: value for name, value in module.state_dict().items() if name in own}
    problems = _mismatches(stored, weights, {name for name, _ in module.named_buffers()})
    if problems:
        raise ConfigError(
            f"train.init_from.checkpoint: {config.checkpoint} does not fit the model: "
            f"{'; '.join(problems)}; give the section model of the run it comes from"
        )
    check_buffers(module, weights, matching_buffers, Path(config.checkpoint))
    with torch.no_grad():
        for name, value in restored(module, weights).items():
            if name in own:
                own[name].copy_(value)
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


def check_buffers(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    matching_buffers: Mapping[str, str],
    checkpoint: Path,
) -> None:
    """Raise `ConfigError` unless `ModelSpec.matching_buffers` are equal in a module and in weights."""
    for name, what in matching_buffers.items():
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
    return [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]


def _is_update(name: str) -> bool:
    """Whether a parameter belongs to a low-rank update, which begins at zero and may be new in this run."""
    return ".lora_" in name
