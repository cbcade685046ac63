"""The benchmarks keep up with the code they measure."""

import dataclasses
import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from millrace.scaling.measure import MESSAGE_BYTES
from millrace.training.phases import PhaseClock

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(autouse=True)
def of_bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)


def test_rows_tell_ratio_interval_and_whether_the_goal_is_met():
    rows = importlib.import_module("rows")
    ours, theirs = [2.0, 1.0, 4.0, 2.0, 2.0, 2.0, 2.0], [6.0, 6.0, 8.0, 6.0, 6.0, 6.0, 6.0]
    row = rows.Row("step", "s", ours, "library", theirs, goal=3)
    assert row.result == rows.Interval(3, 2, 6)
    assert row.cells()[1:] == ["2 s", "6 s, library", "3.00 x (2.00 to 6.00)", "≥ 3 x", "", "met"]
    rate = rows.Row("read", "MB/s", [100.0, 110.0, 105.0], goal=170, larger=True, share=0.5)
    assert rate.cells() == ["read", "105 MB/s", "", "", "≥ 170 MB/s", "50%", "MISSED"]
    faster = rows.Row("windows", "1/s", [2.0, 2.0], "loader", [1.0], goal=2, larger=True)
    assert (faster.result.middle, faster.met) == (2, True)
    assert rows.Row("memory", "MB", [600.0], goal=500).met is False
    # One value of twenty on either side lies outside of what holds the median with 95 %.
    many = rows.Interval.of(range(20))
    assert (many.low, many.high) == (5, 14)


def test_variants_take_turns_after_a_first_round():
    rows = importlib.import_module("rows")
    called = []
    variants = {name: lambda name=name: called.append(name) for name in "ab"}
    times = rows.in_turns(variants, 3)
    assert "".join(called) == "ab" * 4
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_results_are_compared_beyond_noise(tmp_path):
    rows = importlib.import_module("rows")

    def results(cpu, *made):
        on = {"cpu": cpu, "cores": 2}
        path = rows.write(tmp_path, [dataclasses.asdict(row) for row in made], on, "c0ffee")
        return json.loads(path.read_text())

    def step(*seconds):
        return rows.Row("step", "s", seconds, "library", [8.0] * len(seconds))

    alone, memory = rows.Row("start", "s", [1.0, 1.1]), rows.Row("memory", "MB", [5.0])
    old = results("A", step(2.0, 2.1, 1.9), alone, memory)
    slower = results("A", step(3.0, 3.1, 2.9), rows.Row("start", "s", [0.5, 0.6]))
    lines = rows.compare(old, slower)
    assert [line.split()[0] for line in lines] == ["WORSE", "better", "gone"]
    assert "step: 4 (3.81 to 4.21) -> 2.67 x" in lines[0]
    assert rows.compare(old, old) == ["no change beyond noise"]
    other = rows.compare(results("B", step(2.1, 1.8, 2.3), rows.Row("start", "s", [9.0])), old)
    assert [line.split()[0] for line in other] == ["new", "other"]


def test_results_of_gpus_are_shown_and_not_compared(tmp_path, monkeypatch, capsys):
    rows = importlib.import_module("rows")
    on = {"torch": "2", "copy_gb_s": 7, "products_tflops": {"float32": 5, "bfloat16": 6}}
    for name, machine in (("gpu-h", {"gpu": "H", **on}), ("trial-cpu", {"cpu": "C", **on})):
        cells = [{"cells": [name, "1"]}]
        rows.save(tmp_path / f"{name}.json", cells, machine, "c0ffee", ("system", "ms"))
    monkeypatch.syspath_prepend(BENCH.parents[1] / "docs")
    generate = importlib.import_module("generate")
    monkeypatch.setattr(generate, "RESULTS", tmp_path)
    said = generate.speed()
    assert "## H, commit c0ffee" in said
    assert "products 5 TF/s in float32 and 6 in bfloat16" in said
    assert "| gpu-h | 1 |" in said
    assert "trial" not in said
    path = str(tmp_path / "gpu-h.json")
    monkeypatch.setattr(sys, "argv", ["rows.py", "--compare", path, path])
    with pytest.raises(SystemExit):
        rows.main()
    assert "GPUs are not compared" in capsys.readouterr().err


def test_names_choose_measurements():
    rows = importlib.import_module("rows")
    names = ["gino-1500", "gino-stock"]
    assert rows.selected(names, [], ["gino-stock"]) == ["gino-1500"]
    assert rows.selected(names, ["gino"], ["gino-stock"]) == ["gino-1500"]
    assert rows.selected(names, ["gino-stock"], ["gino-stock"]) == ["gino-stock"]


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
def test_gpu_benchmark_times_every_system(experiments, monkeypatch, capsys, tmp_path):
    bench = runpy.run_path(str(BENCH / "gpu_training.py"))

    def made(setting, root):
        # The samples of the other tests, which are smaller.
        _, plan = bench["configured"](setting)
        name = plan.experiments[setting[1]]["model"]["name"]
        return *experiments[name], {"micro_batch": 2}

    monkeypatch.setitem(bench["main"].__globals__, "made", made)
    bench["main"](["--device", "cpu", "--rounds", "2", "--results", str(tmp_path)])
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("measured on CPU")
    for system in bench["SMALL"]:
        (start,) = [n for n, line in enumerate(lines) if line.startswith(f"{system}: ")]
        assert "parameters, batches of" in lines[start]
        for line, precision in zip(lines[start + 1 :], ("float32", "bfloat16"), strict=False):
            name, milliseconds, rate, ratio, tera, share, waiting, memory, _ = line.split()
            assert (name, memory) == (precision, "-")
            assert min(map(float, (milliseconds, rate, ratio, tera))) > 0
            assert share.endswith("%")
            assert 0 <= float(waiting.removesuffix("%")) <= 100
    [path] = tmp_path.glob("trial-cpu-*.json")
    found = json.loads(path.read_text())
    counts = {len(found["columns"]), *(len(row["cells"]) for row in found["rows"])}
    assert counts == {len(bench["COLUMNS"])}
    assert {len(row["seconds"]) for row in found["rows"]} == {2 * (bench["STEPS"] - 1)}


def test_gpu_benchmark_tells_which_kernel_sums_to_take():
    bench = runpy.run_path(str(BENCH / "gpu_training.py"))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    pairs = [name for name in bench["variants"]("gino", gpu) if name.endswith(", Triton")]
    assert pairs == [f"{name}, Triton" for name in bench["VARIANTS"]]
    for model, device in (("gfno", gpu), ("gino", cpu)):
        assert not any(sums for _, _, sums in bench["variants"](model, device).values())
    seconds = {"a": [2, 2, 9], "a, Triton": [1, 1, 9], "b": [1], "b, Triton": [0.98], "c": [1]}
    rows = [{"name": f"gino, {name}", "seconds": found} for name, found in seconds.items()]
    assert bench["better_sums"](rows) == [
        "gino, a: with Triton a step takes 0.50 of the time; take model.kernel_sums: triton",
        "gino, b: with Triton a step takes 0.98 of the time; take model.kernel_sums: bags",
    ]


def test_steps_that_count_are_those_of_a_variant_in_a_row(monkeypatch):
    """Not what others did in between, nor the first, whose samples were not gathered before."""
    bench = runpy.run_path(str(BENCH / "gpu_training.py"))
    clock, instant = PhaseClock(torch.device("cpu")), 0.0
    monkeypatch.setattr("millrace.training.phases.time.perf_counter", lambda: instant)
    subject = bench["Subject"](None, clock, "float32", 0.0, None, rounds=3)
    steps = bench["STEPS"]
    for number in range(3):
        instant += 100  # of the others
        clock.end_step()
        for step in range(steps):
            instant += 10 if step == 0 else number + 1
            clock.end_step()
    found = [one["total"] for one in subject.steps()]
    assert found == [2] * (steps - 1) + [3] * (steps - 1)


@pytest.mark.slow
def test_links_between_processes_are_measured():
    command = [sys.executable, BENCH / "gpu_links.py", "--device", "cpu", "--ranks", "2"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    first, _, *rows, last = said.splitlines()
    assert first.startswith("all-reduce between 2 x CPU processes")
    assert [int(row.split()[0].replace(",", "")) for row in rows] == [*MESSAGE_BYTES]
    assert all(float(row.split()[1]) > 0 for row in rows)
    assert last.startswith("latency ")


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
