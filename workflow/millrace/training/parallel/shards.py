"""Tensors of which a process may hold a part: their local values, their full values, and their norm.

`torch.distributed.tensor`, which takes a third of a second, is imported by what divides a model. Where
nothing has imported it, there are no parts.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MOMENTS = ("exp_avg", "exp_avg_sq")
"""State of AdamW for each parameter, besides its step."""


def is_part(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether this process may hold a part of the tensor only."""
    imported = sys.modules.get("torch.distributed.tensor")
    return imported is not None and isinstance(tensor, imported.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds; changes of it change the tensor."""
    return tensor.to_local() if is_part(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The full tensor; call it on all processes that hold a part."""
    return tensor.full_tensor() if is_part(tensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy this process's part of the full ``values`` into a tensor."""
    if is_part(tensor):
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        shape, offset = compute_local_shape_and_global_offset(
            tensor.shape, tensor.device_mesh, tensor.placements
        )
        values = values[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
    local(tensor).copy_(values)


def reduced(gradient: Tensor) -> Tensor:
    """A gradient whose partial sums have been added up over the processes."""
    if is_part(gradient) and any(p.is_partial() for p in gradient.placements):
        from torch.distributed.tensor import Replicate

        places = [Replicate() if p.is_partial() else p for p in gradient.placements]
        return gradient.redistribute(placements=places)
    return gradient


@torch.no_grad()
def global_norm(gradients: Iterable[Tensor], holders: int, device: torch.device) -> Tensor:
    """Root of the sum of squares over all processes, each value counted once.

    ``holders`` is the number of processes with parts or replicas of the same tensors: all but other stages.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    for gradient in gradients:
        replicas = holders
        if is_part(gradient):
            for dim, placement in enumerate(gradient.placements):
                if placement.is_shard() or type(placement).__name__ == "_StridedShard":
                    replicas //= gradient.device_mesh.size(dim)
        total += local(gradient).double().square().sum() / replicas
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.sqrt().float()


@torch.no_grad()
def scale(gradients: Sequence[Tensor], factor: Tensor | float) -> None:
    """Multiply gradients by a factor in place."""
    if gradients:
        torch._foreach_mul_([local(g) for g in gradients], factor)


def by_mesh(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group parameters by mesh and placement: a vectorised operation can take one group at once."""
    groups: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        key = None
        if is_part(parameter):
            key = (parameter.device_mesh, parameter.placements)
        groups.setdefault(key, []).append(parameter)
    return list(groups.values())
