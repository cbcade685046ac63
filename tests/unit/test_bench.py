"""The benchmarks keep up with the code they measure."""

import runpy
from pathlib import Path

import pytest
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


def test_parallel_benchmark_measures_the_memory_that_is_planned(alone):
    bench = runpy.run_path(str(BENCH / "bench_parallel.py"))
    what, _ = bench["subject"]("tiny", bench["BATCH"]["tiny"], "float32")
    [planned] = bench["footprints"](what, bench["resolved"](what, 1, {}), None, False)
    [measured] = bench["held"](alone, "tiny/one process")["peaks"]
    assert measured == pytest.approx(planned.total, rel=bench["GOAL"])
