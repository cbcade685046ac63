"""Exchange of gradients between ranks: in half precision it takes half the traffic."""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from millrace.training.phases import Mark, unmarked

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def exchange_gradients(model: DistributedDataParallel, kind: str, mark: Mark = unmarked) -> None:
    """Have ``model`` average its gradients in ``bfloat16`` or ``float16``; ``none``: as they are.

    Torch's own compressing hooks drop the imaginary part of complex gradients.

    ``mark`` is told when nothing is left to compute: the last bucket of gradients is on its way.
    """
    average = _plain if kind == "none" else partial(_compressed, _DTYPES[kind])
    if kind == "none" and mark is unmarked:
        return  # DDP's own exchange

    def hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        future = average(bucket)
        if bucket.is_last():
            mark("communication")
        return future

    model.register_comm_hook(None, hook)


def _plain(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    everyone = dist.group.WORLD
    assert everyone is not None  # the model is wrapped because there are several ranks
    return allreduce_hook(everyone, bucket)


def _compressed(dtype: torch.dtype, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    gradient = bucket.buffer()
    real = torch.view_as_real(gradient) if gradient.is_complex() else gradient
    # Divided first: the sum over many ranks could overflow.
    sent = (real / dist.get_world_size()).to(dtype)

    def decompress(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        real.copy_(done.value()[0])
        return gradient

    return dist.all_reduce(sent, async_op=True).get_future().then(decompress)
