"""Runs with known answers, for the tests of scaling: not measured anywhere."""

from dataclasses import replace

import numpy as np

from millrace.layout import Layout
from millrace.scaling.records import SCHEMA, AllReduceTiming, Device, Host, ScalingRun, Times

GPU = Device("gpu", "Test GPU 40 GB", 40 * 2**30, peak_flops=1e14, peak_bytes_per_s=1.5e12)
CPU = Device("cpu", "Test CPU")
LINKS = {"intra": (5e-6, 100e9), "inter": (2e-5, 10e9)}  # alpha (s), beta (B/s)
SIZES = [2**k for k in range(12, 28, 2)]


def all_reduce(size, ranks, link):
    alpha, beta = LINKS[link]
    return 2 * (ranks - 1) * alpha + 2 * (ranks - 1) / ranks * size / beta


def make_run(
    layout="n1_gpu1", repeat=0, mode="strong", experiment="model_a", device=GPU, batch=64,
    sample_s=1e-3, fixed_s=2e-3, slow=None, data_s=0.0, communication_s=None, hidden=0.6,
    gradient_bytes=40_000_000, noise=0.01, run_noise=0.0, rank_noise=0.0, steps=40, seed=0, **more,
):  # fmt: skip
    """A run whose ranks take fixed_s + sample_s for each sample; see the code for the rest.

    noise, run_noise, rank_noise: relative noise of a step on all ranks, of a run, of each rank and step;
    slow: factors of computing by rank; data_s: wait of every rank for data in a step; communication_s:
    exposed communication, by default that of a ring over LINKS.
    """
    place = Layout.parse(layout)
    ranks = place.world_size
    random = np.random.default_rng(
        [seed, repeat, place.nodes, ranks, mode == "weak", len(experiment)]
    )
    link = "inter" if place.nodes > 1 else "intra"
    global_batch = batch if mode == "strong" else batch * ranks

    def jitter(*shape):
        return 1 + noise * random.standard_normal(shape)

    run_factor = 1 + run_noise * random.standard_normal()
    computing_RS = (
        (fixed_s + sample_s * global_batch / ranks) * jitter(1, steps) * np.ones((ranks, 1))
    )
    computing_RS *= np.asarray(slow if slow is not None else np.ones(ranks))[:, None] * run_factor
    if rank_noise:
        computing_RS *= 1 + rank_noise * random.standard_normal((ranks, steps))
    data_RS = np.full((ranks, steps), data_s) * jitter(1, steps)
    if communication_s is None:
        communication_s = 0.0
        if ranks > 1:
            transfer = all_reduce(gradient_bytes, ranks, link)
            communication_s = transfer - hidden * min(
                transfer, float(np.median(computing_RS)) * 0.6
            )
    busy_RS = computing_RS + data_RS
    wall_S = busy_RS.max(axis=0) + communication_s * jitter(steps)
    parts = {
        "total": np.broadcast_to(wall_S, busy_RS.shape),
        "forward": 0.3 * computing_RS,
        "backward": 0.6 * computing_RS,
        "communication": wall_S - busy_RS,
        "data": data_RS,
        "optimiser": 0.08 * computing_RS,
    }
    table = ()
    if ranks > 1:
        table = tuple(
            AllReduceTiming(size, float(all_reduce(size, ranks, link) * jitter()), ranks, link)
            for size in SIZES
        )
    run = ScalingRun(
        schema=SCHEMA,
        experiment=experiment,
        layout=layout,
        mode=mode,
        repeat=repeat,
        device=device,
        backend="none" if ranks == 1 else "nccl" if device.kind == "gpu" else "gloo",
        hosts=tuple(Host(f"node{i}", "Test CPU", 32, 2**38) for i in range(place.nodes)),
        global_batch=global_batch,
        samples_per_epoch=6400,
        gradient_bytes=gradient_bytes,
        warm_up_steps=10,
        times=Times(
            **{name: tuple(map(tuple, np.maximum(v, 0).tolist())) for name, v in parts.items()}
        ),
        losses=tuple((1 / np.arange(1, steps + 1)).tolist()),
        peak_memory_bytes=(2**30,) * ranks,
        bandwidth=table,
        software={"torch": "2.13.0"},
        provenance={"git_revision": "0123456789abcdef", "git_dirty": False},
    )
    return replace(run, **more)


def series(layouts, repeats=3, **options):
    return [make_run(name, repeat, **options) for name in layouts for repeat in range(repeats)]
