"""What is left of a plan, and what finished jobs say of it."""

import json
from dataclasses import replace

import pytest

from millrace.planning.dry_run import Job
from millrace.planning.estimates import summarised
from millrace.systems.registry import systems


def training(seed, epoch, gpus=2):
    name = f"results/train/wave/n1_gpu2/seed{seed}/epoch_{epoch}"
    return Job(
        rule="train_segment",
        wildcards={"experiment": "wave", "layout": "n1_gpu2", "seed": seed, "epoch": epoch},
        output=[f"{name}.ckpt", f"{name}.json"],
        benchmark=None,
        threads=4,
        resources={"gres": f"gpu:{gpus}", "nodes": 1, "mem_mb": 2048, "runtime": 90}
        if gpus
        else {},
    )


def finish(root, job, device, seconds):
    """Write what a job makes: its receipt knows every epoch of the run, whatever job did it."""
    epochs = range(1, int(job.wildcards["epoch"]) + 1)
    receipt = {
        "sessions": [{"device": device}],
        "history": [{"epoch": epoch, "seconds": seconds} for epoch in epochs],
    }
    (root / job.output[0]).parent.mkdir(parents=True, exist_ok=True)
    (root / job.output[0]).write_bytes(b"0" * 2**20)
    (root / job.output[1]).write_text(json.dumps(receipt))


def test_trainings_are_expected_to_take_as_long_as_finished_ones_by_epoch(tmp_path):
    first, second, other = training(0, 4), training(0, 10), training(1, 10)
    finish(tmp_path, first, "NVIDIA A100", seconds=180.0)
    [row] = summarised([first, second, other], [second, other], tmp_path)
    assert (row.stage, row.jobs, row.left) == ("train", 3, 2)
    assert row.hours_asked == 2 * 1.5
    assert row.hours_expected == pytest.approx((6 + 10) * 180 / 3600)
    assert row.gpu_hours_expected == pytest.approx(2 * row.hours_expected)
    assert row.memory_gb == 2
    assert row.disk_gb == pytest.approx(2 * 2**20 / 2**30, rel=1e-3)


def test_a_training_on_a_cpu_says_nothing_of_gpus(tmp_path):
    for gpus, hours in ((2, None), (0, 4 * 60 / 3600)):
        first, second = training(0, 4, gpus), training(1, 4, gpus)
        finish(tmp_path, first, "CPU", seconds=60.0)
        [row] = summarised([first, second], [second], tmp_path)
        assert row.hours_expected == (None if hours is None else pytest.approx(hours))


def test_a_slow_job_among_others_does_not_count_for_more(tmp_path):
    done = [training(seed, 4) for seed in range(3)]
    for job, seconds in zip(done, (60.0, 90.0, 900.0), strict=True):
        finish(tmp_path, job, "NVIDIA A100", seconds)
    [row] = summarised([*done, training(3, 4)], [training(3, 4)], tmp_path)
    assert row.hours_expected == pytest.approx(4 * 90 / 3600)


def test_other_jobs_are_expected_by_their_benchmarks(tmp_path):
    def scored(seed):
        name = f"results/evaluate/wave/n1_gpu2/seed{seed}"
        keys = {"experiment": "wave", "layout": "n1_gpu2", "seed": seed}
        return Job("evaluate_run", keys, [f"surrogate/{name}"], f"{seed}.tsv", 1, {})

    (tmp_path / scored(0).output[0]).mkdir(parents=True)
    (tmp_path / "0.tsv").write_text("s\th:m:s\n7200.0\t2:00:00\n")
    [row] = summarised([scored(0), scored(1)], [scored(1)], tmp_path)
    assert (row.stage, row.hours_expected, row.hours_asked) == ("evaluate", 2.0, None)


def part(number, source="era5"):
    return Job(
        rule="extract_part",
        wildcards={"dataset": "globe", "kind": "weather", "part": str(number)},
        input=[source],
        output=[f"results/data/globe/parts/weather_{number}.h5"],
        benchmark=f"{number}.tsv",
        threads=1,
        resources={},
    )


def test_jobs_on_raw_files_are_expected_by_the_size_of_these(tmp_path):
    (tmp_path / "era5").mkdir()
    (tmp_path / "era5/a.nc").write_bytes(b"0" * 3_000_000)
    parts = [part(n) for n in range(3)]
    cost = systems()["weather"].costs["extract_weather"]
    [row] = summarised(parts, parts[1:], tmp_path)
    assert row.by_size
    starts = 2 * 2.0
    assert row.hours_expected == pytest.approx((starts + 2 * cost.seconds * 1e-3) / 3600)
    assert row.disk_gb == pytest.approx(2e6 * cost.written / 2**30)
    held = cost.memory_gb + cost.held * 1e6 / 2**30
    assert row.memory_expected_gb == pytest.approx(held)


@pytest.mark.parametrize(
    ("settings", "seconds", "written"),
    [
        ({}, 10, 1.0),
        ({"store": "copy", "compress": None}, 10, 1.0),
        ({"store": "reference"}, 10, 0.0),
        ({"compress": {"keep_bits": 3}}, 10 + 7.1, 0.125),
        ({"compress": {"keep_bits": 23}}, 10 + 21.1, 0.75),
    ],
)
def test_states_that_are_not_copied_as_they_are_are_counted_so(
    tmp_path, settings, seconds, written
):
    (tmp_path / "era5").mkdir()
    (tmp_path / "era5/a.nc").write_bytes(b"0" * 2**20)
    globes = {"globe": settings, "other": {"store": "reference"}}
    [row] = summarised([part(0)], [part(0)], tmp_path, globes)
    assert row.hours_expected == pytest.approx((2.0 + seconds * 2**20 / 1e9) / 3600)
    assert row.disk_gb == pytest.approx(written * 2**20 / 2**30)


@pytest.mark.parametrize("rule", ["find_missing", "preprocess_part"])
def test_parts_of_a_series_share_its_raw_files(tmp_path, rule):
    (tmp_path / "feflow").mkdir()
    (tmp_path / "feflow/a.csv").write_bytes(b"0" * 3_000_000)
    made = [replace(part(n, "feflow"), rule=rule) for n in range(3)]
    cost = systems()["groundwater"].costs[rule]
    [row] = summarised(made, made[1:], tmp_path)
    assert (row.by_size, row.jobs, row.left) == (True, 3, 2)
    starts = 2 * 2.0
    assert row.hours_expected == pytest.approx((starts + 2 * cost.seconds * 1e-3) / 3600)
    assert (row.disk_gb or 0) == pytest.approx(2e6 * cost.written / 2**30)


def test_a_finished_part_says_more_than_sizes(tmp_path):
    (tmp_path / "era5").mkdir()
    (tmp_path / "era5/a.nc").write_bytes(b"0")
    (tmp_path / "0.tsv").write_text("s\th:m:s\n3600.0\t1:00:00\n")
    parts = [part(n) for n in range(3)]
    (tmp_path / parts[0].output[0]).parent.mkdir(parents=True)
    (tmp_path / parts[0].output[0]).write_bytes(b"0" * 2**20)
    [row] = summarised(parts, parts[1:], tmp_path)
    assert not row.by_size
    assert (row.hours_expected, row.disk_gb) == (2.0, pytest.approx(2 * 2**20 / 2**30))


def test_raw_files_that_are_not_there_say_nothing(tmp_path):
    [row] = summarised([part(0)], [part(0)], tmp_path)
    assert (row.hours_expected, row.disk_gb, row.memory_expected_gb) == (None, None, None)
