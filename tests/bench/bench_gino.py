"""One training step of GINO against the library's model with the same weights, on one CPU core.

Three variants take turns in one process:

stock     `neuralop.models.GINO` as it comes without torch_scatter: a Python loop over output points
segment   the same with `torch.segment_reduce` in place of that loop
millrace  cached neighbour tables and embeddings, separable first layer, samples folded

Run it as ``python tests/bench/bench_gino.py [--quick]``; the stock variant takes a minute a step.
"""

import argparse
import statistics
import time

import neuralop.layers.integral_transform as integral_transform
import numpy as np
import torch

from millrace.systems.groundwater.gino import GINO
from millrace.systems.groundwater.gno import NeighbourTable
from millrace.systems.groundwater.graph import radius_neighbours
from millrace.systems.groundwater.patch_dataset import LatentGeometry, PatchBatch
from millrace.systems.groundwater.settings import GinoConfig

POINTS, SAMPLES, STEPS_IN, STEPS_OUT = 1500, 16, 10, 10
CONFIG = GinoConfig(latent_shape=(16, 16, 8), radius=0.1, modes=(8, 8, 8), hidden=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave the stock variant out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = make_batch()
    model = GINO(CONFIG, STEPS_IN, STEPS_OUT, torch.ones(1))
    variants = {
        "millrace": lambda: model(batch),
        "segment": lambda: library(model, batch, segment_csr),
    }
    if not arguments.quick:
        variants["stock"] = lambda: library(model, batch, integral_transform.segment_csr)
    outputs = {name: run().detach() for name, run in variants.items()}
    difference = max(float((out - outputs["millrace"]).abs().max()) for out in outputs.values())
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(5):
        for name, run in variants.items():
            if name == "stock" and turn > 0:
                continue
            started = time.process_time()
            run().square().sum().backward()
            times[name].append(time.process_time() - started)
            model.zero_grad()
    base = statistics.median(times["millrace"])
    print(f"GINO step, {POINTS} points, latent {CONFIG.latent_shape}, batch {SAMPLES}, one core")
    print(f"largest difference of outputs: {difference:.1e}")
    print("variant    CPU s/step    against millrace")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:9}  {median:10.3f}    {median / base:8.1f} x   ({len(values)} steps)")


def make_batch() -> PatchBatch:
    random = np.random.default_rng(0)
    points = random.random((POINTS, 3))
    axes = [np.linspace(0, 1, n) for n in CONFIG.latent_shape]
    latent = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    geometry = LatentGeometry(
        points_N3=torch.tensor(points, dtype=torch.float32),
        latent_G3=torch.tensor(latent, dtype=torch.float32),
        latent_shape=CONFIG.latent_shape,
        n_core=POINTS,
        into_latent=table(points, latent),
        from_latent=table(latent, points),
    )
    last = torch.randn(POINTS, SAMPLES, 1)
    return PatchBatch(
        x_NBC=torch.randn(POINTS, SAMPLES, STEPS_IN),
        last_KBV=last,
        y_KBTV=torch.randn(POINTS, SAMPLES, STEPS_OUT, 1),
        scale_V=torch.ones(1),
        variance_weight_KV=torch.ones(POINTS, 1),
        weight_B=torch.ones(SAMPLES),
        geometry=geometry,
    )


def table(points: np.ndarray, queries: np.ndarray) -> NeighbourTable:
    return NeighbourTable.from_csr(radius_neighbours(points, queries, CONFIG.radius), len(points))


def library(model: GINO, batch: PatchBatch, reduction) -> torch.Tensor:
    """Forward pass of the library with one of two reductions."""
    before = integral_transform.segment_csr
    integral_transform.segment_csr = reduction
    try:
        geometry = batch.geometry
        points = geometry.points_N3.unsqueeze(0)
        latent = geometry.latent_G3.reshape(1, *geometry.latent_shape, 3)
        change = model.net(points, latent, points, x=batch.x_NBC.transpose(0, 1))
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
