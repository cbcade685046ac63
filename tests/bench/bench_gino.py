"""One training step of GINO against the library's model with the same weights, on one CPU core.

Three variants take turns in one process; a step is forecast, loss, gradient, clipping and AdamW.

stock     `neuralop.models.GINO` as it comes without torch_scatter: a Python loop over output points
segment   the same with `torch.segment_reduce` in place of that loop
millrace  real matrices for the kept modes, kernel sums over bags, cached neighbours and embeddings

The floor is the time of all products at the rate of a large one of this core, and of reading and writing
once what lies between layers at the rate of a copy. Run it as ``python tests/bench/bench_gino.py [--stock]
[SIZE ...]``; a stock step takes a minute at the smallest size.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import neuralop.layers.integral_transform as integral_transform
import numpy as np
import torch
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
    """A problem, and how many times faster than ``segment`` a step is to be."""

    config: GinoConfig
    points: int
    samples: int
    steps_in: int
    steps_out: int
    goal: float
    rounds: int = 7


_LARGE = GinoConfig(latent_shape=(32, 32, 8), radius=0.18, modes=(8, 8, 6), hidden=128)
_SMALL = GinoConfig(latent_shape=(16, 16, 8), radius=0.1, modes=(8, 8, 8), hidden=64)
SIZES = {
    "1500": Size(_SMALL, 1500, 16, 10, 10, goal=4),
    "3000": Size(_LARGE, 3000, 8, 14, 2, goal=5, rounds=3),
    "24000": Size(_SMALL, 24_000, 8, 10, 10, goal=3, rounds=3),
}
STOCK_GOAL, FLOOR_GOAL = 140, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", metavar="SIZE", default=["1500", "3000"])
    parser.add_argument("--stock", action="store_true", help="the stock library, too")
    text = "do not keep freed memory, as processes other than Millrace's"
    parser.add_argument("--default-malloc", action="store_true", help=text)
    arguments = parser.parse_args()
    if not arguments.default_malloc:
        keep_freed_memory()
    torch.set_num_threads(1)
    for name in arguments.sizes:
        measure(SIZES[name], arguments.stock)


def measure(size: Size, with_stock: bool) -> None:
    torch.manual_seed(0)
    batch = make_batch(size)
    model = GINO(size.config, size.steps_in, size.steps_out, torch.ones(1))
    theirs = library_model(size.config, size.steps_in, size.steps_out)
    theirs.load_state_dict(model.net.state_dict())
    forecasts: dict[str, tuple[nn.Module, Callable[[], torch.Tensor]]] = {
        "millrace": (model, lambda: model(batch)),
        "segment": (theirs, lambda: library(theirs, batch, segment_csr)),
    }
    if with_stock:
        stock = integral_transform.segment_csr
        forecasts["stock"] = (theirs, lambda: library(theirs, batch, stock))
    with torch.no_grad():
        made = {name: forecast() for name, (_, forecast) in forecasts.items() if name != "stock"}
    difference = float(
        (made["segment"] - made["millrace"]).abs().max() / made["segment"].abs().max()
    )
    steps = {name: training(*forecasts[name], batch) for name in forecasts}
    with FlopCounterMode(display=False) as counter:
        steps["millrace"]()
    steps["segment"]()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(size.rounds):
        for name, step in steps.items():
            if name != "stock" or not turn:
                times[name].append(cpu_seconds(step))
    base = statistics.median(times["millrace"])
    edges = len(batch.geometry.into_latent.index) + len(batch.geometry.from_latent.index)
    print(f"GINO step, {size.points} points, {edges} edges, batch {size.samples}, {size.config}")
    print(f"  largest difference of outputs {difference:.1e}")
    goals = {"segment": size.goal, "stock": STOCK_GOAL}
    for name, values in times.items():
        median = statistics.median(values)
        text = f"  {name:9} {median:8.3f} CPU s"
        if name in goals:
            ratio = median / base
            text += f", {ratio:6.1f} x; goal {goals[name]}: {told(ratio >= goals[name])}"
        print(text)
    flops, moved = counter.get_total_flops(), unavoidable_bytes(size)
    gemm, copy = rates()
    floor = flops / gemm + moved / copy
    print(
        f"  {flops / 1e9:.1f} GFLOP at {gemm / 1e9:.0f} GF/s and {moved / 1e9:.2f} GB at {copy / 1e9:.1f} "
        f"GB/s: floor {floor:.3f} s, share {floor / base:.0%}; goal {FLOOR_GOAL:.0%}: "
        f"{told(floor >= FLOOR_GOAL * base)}",
        flush=True,
    )


def told(reached: bool) -> str:
    return "reached" if reached else "MISSED"


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


def rates() -> tuple[float, float]:
    """Operations a second of a large product, and bytes a second of a copy, read and written."""
    a, b = torch.randn(1024, 1024), torch.empty(64 << 20)
    c = torch.empty_like(b)
    product = min(cpu_seconds(lambda: torch.mm(a, a)) for _ in range(10))
    copy = min(cpu_seconds(lambda: c.copy_(b)) for _ in range(5))
    return 2 * 1024**3 / product, 2 * 4 * len(b) / copy


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


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


if __name__ == "__main__":
    main()
