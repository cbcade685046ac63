"""Tensor parallelism: pairs of linear layers, the first cut by outputs, the second by inputs.

Shoeybi et al. 2019, arXiv:1909.08053.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from millrace.errors import ConfigError


def divide_layers(
    module: nn.Module,
    mesh: DeviceMesh,
    pairs: Sequence[tuple[str, str]],
    packed: Mapping[str, int],
) -> dict[str, Tensor]:
    """Cut pairs of linear layers among the processes of a mesh.

    Parameters
    ----------
    module : nn.Module
    mesh : DeviceMesh
        With one dimension.
    pairs : sequence of (str, str)
        Names of the layers.
    packed : mapping
        First layers whose outputs are queries, keys and values in one, and their heads. Each process must
        get the three of its own heads: the rows are put in that order first.

    Returns
    -------
    dict
        Names of the parameters whose rows were put in another order -> that order; see `restored`.

    Raises
    ------
    ConfigError
        A first layer has more outputs than the second has inputs and is not among ``packed``: cut as it
        is, a process would get queries of one head and values of another, and silently compute nonsense.
    """
    orders = {}
    for first, second in pairs:
        one, other = module.get_submodule(first), module.get_submodule(second)
        assert isinstance(one, nn.Linear)
        assert isinstance(other, nn.Linear)
        if one.out_features != other.in_features and first not in packed:
            raise ConfigError(
                f"parallel.tensor: {first} has {one.out_features} outputs for the {other.in_features} "
                f"inputs of {second}; a packed projection has to be named in the model's "
                "division, with its heads"
            )
        if first in packed:
            order = head_order(one.out_features, packed[first], mesh.size())
            for name, parameter in one.named_parameters():
                parameter.data = parameter.data[order.to(parameter.device)]
                orders[f"{first}.{name}"] = order
        plan = {first: ColwiseParallel(), second: RowwiseParallel()}
        parallelize_module(module, mesh, plan, src_data_rank=None)
    return orders


def head_order(rows: int, heads: int, parts: int) -> Tensor:
    """Order of packed rows [q, k, v] in which equal slices hold q, k and v of their own heads, [rows]."""
    if heads % parts:
        raise ConfigError(f"parallel.tensor {parts}: does not divide {heads} heads")
    return torch.arange(rows).view(3, parts, -1).transpose(0, 1).reshape(-1)


def restored(full: Tensor, order: Tensor | None) -> Tensor:
    """Undo the order of rows."""
    return full if order is None else full[torch.argsort(order).to(full.device)]


def ordered(full: Tensor, order: Tensor | None) -> Tensor:
    """Apply the order of rows."""
    return full if order is None else full[order.to(full.device)]
