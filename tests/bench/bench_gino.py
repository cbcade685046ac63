"""One training step of GINO against the library's model with the same weights, on one CPU core.

Variants take turns in one process; a step is forecast, loss, gradient, clipping and AdamW.

stock     `neuralop.models.GINO` as it comes without torch_scatter: a Python loop over output points
folded    the same with `torch.segment_reduce` in place of that loop
millrace  kernels in C, or PyTorch with MILLRACE_KERNELS=0; cached neighbours and embeddings

The floor is the time of all products at the rate of a large one of this core, and of reading and writing
once what lies between layers at the rate of a copy. A stock step takes half a minute: ``gino-stock``.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import neuralop.layers.integral_transform as integral_transform
import numpy as np
import torch
from rows import Limits, Row, cpu_seconds, in_turns, run
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from millrace.processes import keep_freed_memory
from millrace.systems.groundwater.gino import GINO, library_model
from millrace.systems.groundwater.gno import NeighbourTable
from millrace.systems.groundwater.graph import radius_neighbours
from millrace.systems.groundwater.patch_dataset import LatentGeometry, PatchBatch
from millrace.systems.groundwater.settings import GinoConfig


@dataclass(frozen=True)
class Size:
    """A problem, the goal against ``folded``, which runs only if there is one, and that of the floor."""

    config: GinoConfig
    points: int
    samples: int
    steps_in: int
    steps_out: int
    goal: float | None = None
    floor: float | None = None


_LARGE = GinoConfig(latent_shape=(32, 32, 8), radius=0.18, modes=(8, 8, 6), hidden=128)
_SMALL = GinoConfig(latent_shape=(16, 16, 8), radius=0.1, modes=(8, 8, 8), hidden=64)
SIZES = {
    "1500": Size(_SMALL, 1500, 16, 10, 10, goal=4, floor=50),
    "3000": Size(_LARGE, 3000, 8, 14, 2, goal=5),
    "24000": Size(_SMALL, 24_000, 8, 10, 10),
}
STOCK_GOAL = 140


def measure(size: Size, rounds: int) -> Iterator[Row]:
    """Against the folded library, and the share of the floor."""
    batch, model, theirs = prepared(size)
    forecasts = {"millrace": (model, lambda: model(batch))}
    if size.goal is not None:
        forecasts["folded"] = (theirs, lambda: library(theirs, batch, segment_csr))
    steps = {name: training(*forecast, batch) for name, forecast in forecasts.items()}
    with FlopCounterMode(display=False) as counter:
        steps["millrace"]()
    times = in_turns(steps, rounds)
    floor = Limits.measured().seconds(counter.get_total_flops(), unavoidable_bytes(size))
    shares = [100 * floor / seconds for seconds in times["millrace"]]
    what = f"GINO step, {size.points:,} points, {size.config.hidden} channels, batch {size.samples}"
    peer = "neuralop, folded segment_reduce"
    yield Row(what, "s", times["millrace"], peer, times.get("folded", ()), size.goal)
    yield Row(f"{what}: share of the floor", "%", shares, goal=size.floor, larger=True)


def stock(rounds: int) -> Iterator[Row]:
    """Against the library as it comes, of which one step is timed.

    In a process of its own, as what ranks do to keep memory makes it three times as fast.
    """
    size = SIZES["1500"]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as there:
        theirs = there.submit(stock_seconds, size).result()
    batch, model, _ = prepared(size)
    ours = in_turns({"millrace": training(model, lambda: model(batch), batch)}, rounds)["millrace"]
    what = f"GINO step, {size.points:,} points, batch {size.samples}, to the library as it comes"
    yield Row(what, "s", ours, "neuralop, stock", [theirs], STOCK_GOAL)


def stock_seconds(size: Size) -> float:
    """CPU time of a step of the library as it comes, after another one."""
    batch, _, model = prepared(size, keep=False)
    reduction = integral_transform.segment_csr
    step = training(model, lambda: library(model, batch, reduction), batch)
    return [cpu_seconds(step) for _ in range(2)][-1]


def prepared(size: Size, keep: bool = True) -> tuple[PatchBatch, GINO, nn.Module]:
    """Samples, our model, and that of the library with the same weights.

    ``keep`` is whether memory is kept, as ranks do.
    """
    if keep:
        keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GINO(size.config, size.steps_in, size.steps_out, torch.ones(1))
    theirs = library_model(size.config, size.steps_in, size.steps_out)
    theirs.load_state_dict(model.net.state_dict())
    return make_batch(size), model, theirs


def training(
    module: nn.Module, forecast: Callable[[], torch.Tensor], batch: PatchBatch
) -> Callable[[], None]:
    """A training step, as the engine does it; the library's complex weights are not fused."""
    parameters = [*module.parameters()]
    real = not any(p.is_complex() for p in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=real)

    def step() -> None:
        (forecast() - batch.y_KBTV).square().mean().backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        torch._foreach_mul_(gradients, torch.clamp(1 / (norm + 1e-6), max=1.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def unavoidable_bytes(size: Size) -> int:
    """Fields between layers, written and read once in each direction, and weights with two moments."""
    cells = int(np.prod(size.config.latent_shape)) * size.samples * size.config.hidden
    modes = size.config.modes
    weights = 2 * modes[0] * modes[1] * (modes[2] // 2 + 1) * size.config.hidden**2
    return 4 * size.config.layers * (2 * 2 * cells + 6 * weights)


def make_batch(size: Size) -> PatchBatch:
    random, config = np.random.default_rng(0), size.config
    points = random.random((size.points, 3))
    axes = [np.linspace(0, 1, n) for n in config.latent_shape]
    latent = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    geometry = LatentGeometry(
        points_N3=torch.tensor(points, dtype=torch.float32),
        latent_G3=torch.tensor(latent, dtype=torch.float32),
        latent_shape=config.latent_shape,
        n_core=size.points,
        into_latent=table(points, latent, config.radius),
        from_latent=table(latent, points, config.radius),
    )
    return PatchBatch(
        x_NBC=torch.randn(size.points, size.samples, size.steps_in),
        last_KBV=torch.randn(size.points, size.samples, 1),
        y_KBTV=torch.randn(size.points, size.samples, size.steps_out, 1),
        scale_V=torch.ones(1),
        variance_weight_KV=torch.ones(size.points, 1),
        weight_B=torch.ones(size.samples),
        geometry=geometry,
        input_steps=size.steps_in,
    )


def table(points: np.ndarray, queries: np.ndarray, radius: float) -> NeighbourTable:
    return NeighbourTable.from_csr(radius_neighbours(points, queries, radius), len(points))


def library(
    net: nn.Module, batch: PatchBatch, reduction: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """Forward pass of the library with one of two reductions."""
    before = integral_transform.segment_csr
    integral_transform.segment_csr = reduction
    try:
        geometry = batch.geometry
        points = geometry.points_N3.unsqueeze(0)
        latent = geometry.latent_G3.reshape(1, *geometry.latent_shape, 3)
        change = net(points, latent, points, x=batch.x_NBC.transpose(0, 1))
    finally:
        integral_transform.segment_csr = before
    return batch.last_KBV.unsqueeze(2) + change.transpose(0, 1).unsqueeze(-1)


def segment_csr(src, indptr, reduction, use_scatter):
    offsets = indptr[0] if indptr.ndim == 2 else indptr
    if src.ndim == 2:
        return torch.segment_reduce(src, reduction, offsets=offsets, axis=0, initial=0.0)
    folded = src.transpose(0, 1).flatten(1)
    out = torch.segment_reduce(folded, reduction, offsets=offsets, axis=0, initial=0.0)
    return out.unflatten(1, (src.shape[0], src.shape[2])).transpose(0, 1)


MEASUREMENTS = {f"gino-{name}": partial(measure, size) for name, size in SIZES.items()}
MEASUREMENTS["gino-stock"] = stock

if __name__ == "__main__":
    run(MEASUREMENTS, __doc__, on_request=["gino-stock"])
