"""The benchmarks keep up with the code they measure."""

import runpy
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"


def test_gino_benchmark_measures_equal_outputs():
    bench = runpy.run_path(str(BENCH / "bench_gino.py"))
    torch.manual_seed(0)
    size = bench["SIZES"]["1500"]
    batch = bench["make_batch"](size)
    model = bench["GINO"](size.config, size.steps_in, size.steps_out, torch.ones(1))
    theirs = bench["library_model"](size.config, size.steps_in, size.steps_out)
    theirs.load_state_dict(model.net.state_dict())
    with torch.no_grad():
        difference = model(batch) - bench["library"](theirs, batch, bench["segment_csr"])
    assert difference.abs().max() < 1e-5


@pytest.mark.slow
def test_parallel_benchmark_measures_the_memory_that_is_planned(alone):
    bench = runpy.run_path(str(BENCH / "bench_parallel.py"))
    what, _ = bench["subject"]("tiny", bench["BATCH"]["tiny"], "float32")
    [planned] = bench["footprints"](what, bench["resolved"](what, 1, {}), None, False)
    [measured] = bench["held"](alone, "tiny/one process")["peaks"]
    assert measured == pytest.approx(planned.total, rel=bench["GOAL"])


@pytest.mark.slow
def test_gpu_benchmark_times_every_system(experiments, monkeypatch, capsys):
    bench = runpy.run_path(str(BENCH / "gpu_training.py"))

    def made(setting, root):
        # The samples of the other tests, which are smaller.
        _, plan = bench["configured"](setting)
        name = plan.experiments[setting[1]]["model"]["name"]
        return *experiments[name], {"micro_batch": 2}

    monkeypatch.setitem(bench["main"].__globals__, "made", made)
    bench["main"](["--device", "cpu", "--steps", "2"])
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("measured on CPU")
    for system in bench["SMALL"]:
        (start,) = [n for n, line in enumerate(lines) if line.startswith(f"{system}: ")]
        assert "parameters, batches of" in lines[start]
        for line, precision in zip(lines[start + 1 :], ("float32", "bfloat16"), strict=False):
            name, milliseconds, rate, _, memory = line.split()
            assert (name, memory) == (precision, "-")
            assert float(milliseconds) > 0
            assert float(rate) > 0


def test_gpu_benchmark_knows_settings_of_full_size_and_needs_a_gpu(monkeypatch):
    bench = runpy.run_path(str(BENCH / "gpu_training.py"))
    for name, setting in bench["FULL"].items():
        _, plan = bench["configured"](setting)
        assert plan.experiments[setting[1]]["model"]["name"] == name
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        SystemExit, match="run this on a GPU node, or try it out with `--device cpu"
    ):
        bench["main"]([])
