"""Compiling a model and checkpointing its activations: from outside, by what its spec says."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def compile_in_place(module: nn.Module, device: torch.device) -> None:
    """Compile a module's forward pass; names of parameters stay, and so does `forward` itself.

    Without a working compiler (a C++ compiler on the CPU, Triton on a GPU) a warning is all that
    happens.
    """
    try:
        torch.compile(_probe)(torch.zeros(2, device=device))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"train.compile: no working compiler for {device.type} here ({reason}); training goes on "
            "without",
            stacklevel=2,
        )
        return
    module.compile()


def checkpoint_activations(module: nn.Module, blocks: Sequence[str]) -> None:
    """Have the submodules ``blocks`` keep only their inputs for the backward pass.

    A block is computed again when its gradients are needed (Chen et al. 2016, arXiv:1604.06174): the
    same gradients for less memory and more time. In a name, ``*`` stands for all members of a list.
    """
    for block in _matching(module, blocks):
        block.forward = _checkpointed(block.forward)


def _matching(module: nn.Module, blocks: Sequence[str]) -> list[nn.Module]:
    """Submodules of these names; those that a stage of a pipeline does not hold are left out."""
    patterns = [re.compile(re.escape(block).replace(r"\*", "[^.]+")) for block in blocks]
    # One that is used at two places has two names.
    present = module.named_modules(remove_duplicate=False)
    found = {id(m): m for name, m in present if any(one.fullmatch(name) for one in patterns)}
    return list(found.values())


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward_again(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        return checkpoint(forward, *arguments, use_reentrant=False, **options)

    return forward_again


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x + 1
