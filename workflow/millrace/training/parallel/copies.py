"""Copies of a model: how `DistributedDataParallel` is set up, and what it needs to know of its input."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from millrace.errors import ConfigError


def check_static_graph(batch: Any) -> None:
    """Refuse a batch in which DDP finds no tensors.

    With a static graph it exchanges gradients by what follows from the tensors it finds in the input; if
    it finds none, each copy goes on with gradients of its own, without a word.
    """
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(batch)):
        raise ConfigError(
            f"parallel.static_graph: DDP sees no tensors in a {type(batch).__name__}, and would not "
            "exchange gradients; register it with torch.utils._pytree, or leave the key out"
        )


def synchronised(
    module: nn.Module, device: torch.device, static_graph: bool
) -> DistributedDataParallel:
    """Have the copies of a module average their gradients, see `check_static_graph`."""
    with warnings.catch_warnings():
        # Newer versions have another name for it, which 2.11 does not know.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        # Buffers are constants of the data, equal on all ranks.
        return DistributedDataParallel(
            module,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=_bucket_megabytes(module, device),
            static_graph=static_graph,
        )


def _bucket_megabytes(module: nn.Module, device: torch.device) -> int | None:
    """Largest bucket of gradients that is exchanged on its own; None: what torch finds best for GPUs.

    On CPUs an exchange hides behind nothing, it takes the cores that compute: one at the end is
    quicker.
    """
    if device.type != "cpu":
        return None
    return 1 + (sum(p.numel() * p.element_size() for p in module.parameters()) >> 20)
