"""The benchmarks keep up with the code they measure."""

import runpy
from pathlib import Path

import torch

BENCH = Path(__file__).parents[1] / "bench"


def test_gino_benchmark_measures_equal_outputs():
    bench = runpy.run_path(str(BENCH / "bench_gino.py"))
    torch.manual_seed(0)
    batch = bench["make_batch"]()
    model = bench["GINO"](bench["CONFIG"], bench["STEPS_IN"], bench["STEPS_OUT"], torch.ones(1))
    with torch.no_grad():
        ours, theirs = model(batch), bench["library"](model, batch, bench["segment_csr"])
    assert (ours - theirs).abs().max() < 1e-5
