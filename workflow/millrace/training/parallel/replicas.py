"""Replicas of a model: how `DistributedDataParallel` is set up, and how it exchanges gradients."""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from millrace.errors import ConfigError
from millrace.training.phases import Mark, no_mark
from millrace.training.precision import half_type


def check_static_graph(batch: Any) -> None:
    """Refuse a batch in which DDP finds no tensors.

    With a static graph, DDP decides which gradients to exchange from the tensors in the input; if it finds
    none, each replica continues with its own gradients, without an error.
    """
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(batch)):
        raise ConfigError(
            f"parallel.static_graph: DDP sees no tensors in a {type(batch).__name__}, and would not "
            "exchange gradients; register it with torch.utils._pytree, or leave the key out"
        )


def replicated(
    module: nn.Module, device: torch.device, static_graph: bool, compression: str, mark: Mark
) -> DistributedDataParallel:
    """Wrap a module so that its replicas average their gradients.

    For ``static_graph`` see `check_static_graph`; ``compression`` is the number format of the exchange,
    none, bfloat16 or float16. ``mark`` is called when the last gradients are being exchanged and nothing is
    left to compute.
    """
    # On CPUs an exchange is not hidden behind computation, because it needs the same cores: a single one at
    # the end is faster. On GPUs torch's own size of the buckets is best.
    megabytes = 1 + (sum(p.numel() * p.element_size() for p in module.parameters()) >> 20)
    with warnings.catch_warnings():
        # Newer versions have another name for it, which 2.11 does not know.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        # Buffers are constants of the data, equal on all ranks.
        model = DistributedDataParallel(
            module,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=megabytes if device.type == "cpu" else None,
            static_graph=static_graph,
        )
    dtype = half_type(compression)
    if dtype is None and mark is no_mark:
        return model  # DDP's own exchange

    def hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        if dtype is None:
            everyone = dist.group.WORLD
            assert everyone is not None
            future = allreduce_hook(everyone, bucket)
        else:
            future = _compressed(dtype, bucket)
        if bucket.is_last():
            mark("communication")
        return future

    model.register_comm_hook(None, hook)
    return model


def _compressed(dtype: torch.dtype, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average gradients in half precision, which halves the traffic.

    Torch's own compressing hooks drop the imaginary part of complex gradients.
    """
    gradient = bucket.buffer()
    real = torch.view_as_real(gradient) if gradient.is_complex() else gradient
    # Divided first: the sum over many ranks could overflow.
    sent = (real / dist.get_world_size()).to(dtype)

    def decompress(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        real.copy_(done.value()[0])
        return gradient

    return dist.all_reduce(sent, async_op=True).get_future().then(decompress)
