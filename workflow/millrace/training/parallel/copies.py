"""Copies of a model: what `DistributedDataParallel` needs to know of its input."""

from typing import Any

from torch import Tensor
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
