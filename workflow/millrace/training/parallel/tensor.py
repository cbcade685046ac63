"""Tensor parallelism: pairs of linear layers, the first cut along its outputs, the second along its inputs.

Shoeybi et al. 2019, arXiv:1909.08053.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from millrace.errors import ConfigError


def divide_layers(
    module: nn.Module, mesh: DeviceMesh, pairs: Sequence[tuple[str, str]], packed: Mapping[str, int]
) -> dict[str, Tensor]:
    """Cut pairs of linear layers among the processes of a mesh with one dimension.

    For ``pairs`` and ``packed`` see `millrace.models.spec.Division`. A process must get queries, keys and
    values of its own heads: the rows of packed layers are reordered accordingly first. Returns the order of
    these rows by name of the parameter.

    Raises `ConfigError` if a first layer has more outputs than the second has inputs and is not among
    ``packed``: a process would combine queries of one head with values of another and compute wrong results
    without an error.
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
    """Order of packed rows [q, k, v] in which equal slices hold q, k and v of their own heads, [rows].

    Raises `ConfigError` if ``parts`` does not divide the number of heads.
    """
    if heads % parts:
        raise ConfigError(f"parallel.tensor {parts}: does not divide {heads} heads")
    return torch.arange(rows).view(3, parts, -1).transpose(0, 1).reshape(-1)
