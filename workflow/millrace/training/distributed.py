"""The ranks of a torchrun job: process group, device, exchange of values, random generators."""

import contextlib
import os
import random
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from millrace.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among all ranks; usable without torchrun as the only one."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sum values over all ranks in float64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def maximum(self, *values: float) -> list[float]:
        """Take the maximum over all ranks."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def gather(self, value: Any) -> list[Any]:
        """Collect one picklable value of every rank on the first; an empty list on the others."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values)
        return values or []

    def from_first(self, value: Any) -> Any:
        """Return the value of the first rank on every rank."""
        if self.world_size == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0)
        return holder[0]

    def synchronise(self) -> None:
        """Wait until the GPU of this rank, if it has one, has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time_all_reduce(self, values: torch.Tensor) -> float:
        """Sum a tensor in place over all ranks, which begin together; returns this rank's seconds."""
        dist.barrier()
        self.synchronise()
        started = time.perf_counter()
        dist.all_reduce(values)
        self.synchronise()
        return time.perf_counter() - started

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(tensor, operation)
        return tensor.tolist()


def node_name() -> str:
    """The scheduler's name of this node, as one machine may emulate several nodes, or that of the host."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


# Ranks may start minutes apart on a busy file system: initialisation waits longer than a step.
_PATIENCE = timedelta(minutes=30)


LOOPBACK = "127.0.0.1"


def loopback_store(port: int = 0, host: bool = True, **options: Any) -> dist.TCPStore:
    """Key-value store that only processes of this machine reach: started at a port, by default a free one.

    Without ``host`` it is that of another process. ``options`` are those of `torch.distributed.TCPStore`,
    which would listen on all interfaces.
    """
    if not host:
        return dist.TCPStore(LOOPBACK, port, is_master=False, **options)
    with socket.create_server((LOOPBACK, port)) as server:
        port, listening = server.getsockname()[1], server.detach()
    return dist.TCPStore(LOOPBACK, port, is_master=True, master_listen_fd=listening, **options)


@contextlib.contextmanager
def process_group(patience: timedelta = _PATIENCE) -> Iterator[Ranks]:
    """Join the ranks that torchrun started: NCCL between GPUs, gloo between CPU processes.

    ``patience`` is the longest time to wait for the other ranks, at the start and at each exchange.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"the layout needs more GPUs than the {torch.cuda.device_count()} of this node: choose a "
                "smaller one, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if world_size > 1:
        backend, store = "nccl" if device.type == "cuda" else "gloo", None
        others = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # who started us has one
        if os.environ["MASTER_ADDR"] == LOOPBACK and not others:
            store = loopback_store(
                int(os.environ["MASTER_PORT"]), rank == 0, world_size=world_size, timeout=patience
            )
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=patience
        )
    try:
        yield Ranks(rank, world_size, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def peak_memory(ranks: Ranks) -> dict[str, float]:
    """Peak GPU memory (bytes) of any rank since the last call; empty without GPUs. Call it on all ranks."""
    if ranks.device.type != "cuda":
        return {}
    allocated = torch.cuda.max_memory_allocated(ranks.device)
    reserved = torch.cuda.max_memory_reserved(ranks.device)
    torch.cuda.reset_peak_memory_stats(ranks.device)
    largest = ranks.maximum(allocated, reserved)
    return dict(zip(("gpu_bytes_allocated", "gpu_bytes_reserved"), largest, strict=True))


def seed_everything(seed: int, rank: int) -> None:
    """Seed the random generators of Python, NumPy and torch with ``seed + rank``."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)  # noqa: NPY002  libraries use the global generator
    torch.manual_seed(seed + rank)


def rng_state() -> dict[str, Any]:
    """State of this process's random generators, as tensors and plain values, see `restore_rng_state`."""
    version, keys, gauss = random.getstate()
    name, numpy_keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(keys), gauss],
        "numpy": [name, [int(k) for k in numpy_keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Restore the random generators to the state of `rng_state`."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numpy_keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(numpy_keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
