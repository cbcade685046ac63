"""Starting from the weights of another run, or from published ones: fine-tuning, another aquifer."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from millrace.errors import ConfigError, DataError, listed
from millrace.input_files import SMALL
from millrace.models.spec import Adopted, ModelSpec
from millrace.models.stored import restored
from millrace.training.config import InitFromConfig
from millrace.training.published import published_file
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
    return checked_weights(checkpoint, weights_of(state) if "model" in state else None)


def checked_weights(file: Path, weights: Any) -> dict[str, Tensor]:
    """Return weights by name that a file holds; raises `DataError` if they are anything else."""
    for name, value in weights.items() if isinstance(weights, dict) else [("", weights)]:
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise DataError(f"{file}: its weights are no tensors; give a checkpoint of Millrace")
        # The shape of a view can be of any size.
        if value.layout != torch.strided or value.nbytes > max(
            SMALL, value.untyped_storage().nbytes()
        ):
            raise DataError(
                f"{file}: {name!r} is declared as {' x '.join(map(str, value.shape))} values, which "
                "the file does not hold; copy or write it again"
            )
    return dict(weights)


def warm_start(
    module: nn.Module, config: InitFromConfig, spec: ModelSpec, model_config: Any, dataset: Any
) -> Adopted | None:
    """Load the parameters of a checkpoint into a module, and freeze those of ``config.freeze``.

    Buffers are those of the new run's data and stay; ``matching_buffers`` of the `ModelSpec` must be equal
    in the checkpoint. Returns what was taken of published weights; None: they are those of another run.
    Raises `ConfigError` if parameters are missing, unexpected or of another shape, a prefix of ``freeze``
    matches none, or all are frozen; and `DataError` if the checkpoint is missing or damaged.
    """
    # A layer that is used at two places has two names in the checkpoint.
    own = dict(module.named_parameters(remove_duplicate=False))
    adopted = None
    if config.published is not None:
        if spec.published is None:
            raise ConfigError(
                f"train.init_from.published: no weights of {spec.name} are published; give a checkpoint"
            )
        adopted = spec.published(model_config, module, dataset, read_published(config.published))
        with torch.no_grad():
            for name, value in adopted.weights.items():
                own[name].copy_(value)
    else:
        _load(module, own, Path(str(config.checkpoint)), spec.matching_buffers)
    _freeze(own, config.freeze)
    return adopted


def _load(
    module: nn.Module, own: Mapping[str, Tensor], checkpoint: Path, buffers: Mapping[str, str]
) -> None:
    weights = _weights(checkpoint)
    stored = {name: value for name, value in module.state_dict().items() if name in own}
    problems = _mismatches(stored, weights, {name for name, _ in module.named_buffers()})
    if problems:
        raise ConfigError(
            f"train.init_from.checkpoint: {checkpoint} does not fit the model: "
            f"{'; '.join(problems)}; give the section model of the run it comes from"
        )
    check_buffers(module, weights, buffers, checkpoint)
    with torch.no_grad():
        for name, value in restored(module, weights).items():
            if name in own:
                own[name].copy_(value)


def _freeze(own: Mapping[str, Tensor], prefixes: Sequence[str]) -> None:
    for prefix in prefixes:
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


def read_published(published: str) -> dict[str, Tensor]:
    """Weights of a published file by its names; executes nothing that is in it.

    Raises errors like `published_file`, and `DataError` if it is damaged or holds anything but tensors.
    """
    path = published_file(published)
    state = load_state(path)
    return checked_weights(path, state.get("state_dict", state))  # as Lightning writes them


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
