"""Compiling a model and recomputing its activations, applied from outside to any model."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from millrace.errors import first_line


def compile_in_place(module: nn.Module, device: torch.device, mode: str | None = None) -> None:
    """Compile a module's forward pass; names of parameters and `forward` itself stay the same.

    ``mode`` is that of `torch.compile`. With CUDA graphs outputs last until the next pass after
    `torch.compiler.cudagraph_mark_step_begin`, and gradients must be there before the first one: those
    that a graph has made are overwritten by its next run, so that sums over micro-batches would be wrong.

    Without a working compiler (a C++ compiler on the CPU, Triton on a GPU) there is a warning and nothing
    is compiled.
    """
    try:
        torch.compile(probe)(torch.zeros(2, device=device))
    except Exception as error:
        warnings.warn(
            f"train.compile: no working compiler for {device.type} here ({first_line(error)}); training "
            "continues without",
            stacklevel=2,
        )
        return
    # Patches of many sizes, with and without gradients: beyond the limit torch goes on without compiling.
    torch._dynamo.config.recompile_limit = 64
    module.compile(mode=mode)


def checkpoint_activations(module: nn.Module, names: Sequence[str]) -> None:
    """Have the submodules ``names`` keep only their inputs for the backward pass.

    They are recomputed when their gradients are needed (Chen et al. 2016, arXiv:1604.06174): the same
    gradients for less memory and more time. A ``*`` stands for all members of a list; submodules that a
    stage of a pipeline does not hold are ignored.
    """
    patterns = [re.compile(re.escape(name).replace(r"\*", "[^.]+")) for name in names]
    # A module that is used at two places has two names.
    present = module.named_modules(remove_duplicate=False)
    found = {id(m): m for name, m in present if any(one.fullmatch(name) for one in patterns)}
    for submodule in found.values():
        submodule.forward = _checkpointed(submodule.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward_again(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        return checkpoint(forward, *arguments, use_reentrant=False, **options)

    return forward_again


def probe(x: torch.Tensor) -> torch.Tensor:
    """Function that is compiled to find out whether a compiler works here."""
    return x + 1
