"""Tensors of which a process holds a part: their local values, their whole, and their norm."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local(tensor: Tensor) -> Tensor:
    """What this process holds; changes of it change the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; to be called on all processes that hold a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, full: Tensor) -> None:
    """Take this process's part of ``full``."""
    if isinstance(tensor, DTensor):
        shape, offset = compute_local_shape_and_global_offset(
            tensor.shape, tensor.device_mesh, tensor.placements
        )
        full = full[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
    local(tensor).copy_(full)


def settled(gradient: Tensor) -> Tensor:
    """A gradient whose parts have been added up."""
    if isinstance(gradient, DTensor) and any(isinstance(p, Partial) for p in gradient.placements):
        from torch.distributed.tensor import Replicate

        places = [Replicate() if isinstance(p, Partial) else p for p in gradient.placements]
        return gradient.redistribute(placements=places)
    return gradient


def copies(tensor: Tensor, holders: int) -> int:
    """How many of ``holders`` processes have the same part of a tensor."""
    if not isinstance(tensor, DTensor):
        return holders
    for dim, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard) or type(placement).__name__ == "_StridedShard":
            holders //= tensor.device_mesh.size(dim)
    return holders


@torch.no_grad()
def global_norm(gradients: Iterable[Tensor], holders: int, device: torch.device) -> Tensor:
    """Root of the sum of squares over all processes, each value counted once.

    Parameters
    ----------
    gradients : iterable of Tensor
        Of this process.
    holders : int
        Processes that hold parts or copies of the same tensors (all but those of other stages).
    device : torch.device
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    for gradient in gradients:
        total += local(gradient).double().square().sum() / copies(gradient, holders)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.sqrt().float()


@torch.no_grad()
def scale(gradients: Sequence[Tensor], factor: Tensor | float) -> None:
    """Multiply in place."""
    locals_ = [local(g) for g in gradients]
    if locals_:
        torch._foreach_mul_(locals_, factor)


def kinds(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Parameters in groups that one vectorised operation can take: plain ones, those of each mesh."""
    groups: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        key = None
        if isinstance(parameter, DTensor):
            key = (parameter.device_mesh, parameter.placements)
        groups.setdefault(key, []).append(parameter)
    return list(groups.values())
