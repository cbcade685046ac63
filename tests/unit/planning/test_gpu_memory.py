"""Trainings that do not fit on the GPUs of a cluster are refused when planned."""

import json
import subprocess

import netCDF4
import numpy as np
import pytest
import yaml
from plans import ROOT, config, small

from millrace.cluster import Cluster
from millrace.errors import ConfigError
from millrace.plan import Plan
from millrace.planning import gpu_memory
from millrace.planning.gpu_memory import check_gpu_memory


@pytest.fixture
def gilbreth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cluster.read("gilbreth")


def tight(cluster):
    """The same cluster, where a training may take almost nothing."""
    return cluster.replaced(usable_gpu_memory=1e-6)


def nobody(*_, **__):
    raise AssertionError("a process was started")


def test_a_model_whose_footprint_is_not_known_is_left_alone(gilbreth, monkeypatch):
    monkeypatch.setattr(subprocess, "run", nobody)
    check_gpu_memory(Plan(config()), tight(gilbreth), nobody)


@pytest.mark.slow  # it starts torch
def test_what_does_not_fit_is_refused_with_figures_and_found_once(gilbreth, monkeypatch):
    made = small("aurora")
    made["run"]["layouts"] = ["n1_gpu1", "n1_gpu4"]
    made["experiments"]["tiny"]["train"]["activation_checkpointing"] = True
    said = []
    check_gpu_memory(Plan(made), gilbreth, said.append)
    assert len(said) == 1
    monkeypatch.setattr(subprocess, "run", nobody)
    check_gpu_memory(Plan(made), gilbreth, nobody)
    with pytest.raises(ConfigError) as refused:
        check_gpu_memory(Plan(made), tight(gilbreth), nobody)
    assert "experiments.tiny on n1_gpu1: a GPU needs 0.0 of its 80 GB (A100-80" in str(
        refused.value
    )
    assert "set train.micro_batch to less than 4" in str(refused.value)
    assert "`millrace plan --parallel tiny`" in str(refused.value)


def test_a_check_that_fails_is_said_and_refuses_nothing(gilbreth, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no torch")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    said = []
    check_gpu_memory(Plan(small("aurora")), tight(gilbreth), said.append)
    assert "it is not known whether all trainings fit on the GPUs" in said[-1]


@pytest.mark.parametrize("levels", [(2, 4), (4, 2), (2, 3)])
def test_the_dataset_with_the_largest_samples_decides(gilbreth, monkeypatch, levels):
    def answered(*_, **options):
        asked = [one["dataset"]["demo"]["level"] for one in json.loads(options["input"])]
        lines = [json.dumps({"bytes": 10 ** (9 + level)}) for level in asked]
        return subprocess.CompletedProcess([], 0, "\n".join(lines), "")

    monkeypatch.setattr(subprocess, "run", answered)
    made = small("downscaler")
    for name, level in zip(("one", "other"), levels, strict=True):
        demo = {**made["datasets"]["small"]["demo"], "level": level}
        made["datasets"][name] = {**made["datasets"]["small"], "demo": demo}
    made["experiments"]["tiny"]["dataset"] = ["one", "other"]
    cluster = gilbreth.replaced(usable_gpu_memory=100.0)  # times 80 GB
    if 4 not in levels:
        check_gpu_memory(Plan(made), cluster, [].append)
        return
    largest = "one" if levels[0] == 4 else "other"
    with pytest.raises(
        ConfigError, match=rf"tiny on n1_gpu1, samples of {largest}: a GPU needs 9313"
    ):
        check_gpu_memory(Plan(made), cluster, [].append)


def era5(path):
    """A file with the axes of 13 levels at 0.25 degrees, and nothing else."""
    with netCDF4.Dataset(path, "w") as file:
        axes = {
            "time": np.arange(2.0),
            "level": np.linspace(50, 1000, 13),
            "latitude": np.linspace(90, -90, 721),
            "longitude": np.arange(1440) / 4,
        }
        for name, values in axes.items():
            file.createDimension(name, len(values))
            file.createVariable(name, "f8", (name,))[:] = values
        file["time"].units = "hours since 2000-01-01"


@pytest.mark.nightly  # a minute of two cores
def test_the_weather_of_the_experiments_fits_at_full_size_and_undivided_does_not(
    gilbreth, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu_memory, "LIMIT", None)
    said = []
    (tmp_path / "era5").mkdir()
    era5(tmp_path / "era5/axes.nc")
    made = yaml.safe_load((ROOT / "config/experiments/weather.yaml").read_text())
    made["datasets"]["era5"]["source"] = str(tmp_path / "era5")
    check_gpu_memory(Plan(made), gilbreth, said.append)
    made["run"]["experiments"] = ["aurora_large_two"]
    made["experiments"]["aurora_large_two"]["layouts"] = ["n1_gpu4"]
    made["experiments"]["aurora_large_two"]["parallel"] = {"dp_replicate": 4}
    with pytest.raises(ConfigError) as refused:
        check_gpu_memory(Plan(made), gilbreth, said.append)
    assert not [one for one in said if "not known" in one]
    assert "aurora_large_two on n1_gpu4: a GPU needs 4" in str(refused.value)
    assert "of its 40 GB (A100-40, node type N of gilbreth), and may take 36.0: divide" in str(
        refused.value
    )


def r2b09(path):
    """An output file with the axes of 21 million cells, and no values."""
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", None)
        file.createDimension("ncells", 20 * 4**10)
        file.createVariable("tas", "f4", ("time", "ncells"), chunksizes=(1, 1 << 20))


@pytest.mark.slow  # it starts torch
@pytest.mark.nightly  # 40 s; a small grid in pieces and whole more often
def test_the_finest_globe_fits_a_small_gpu_in_pieces_and_not_whole(gilbreth, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_memory, "LIMIT", None)
    said = []
    (tmp_path / "icon").mkdir()
    r2b09(tmp_path / "icon/tas.nc")
    made = yaml.safe_load((ROOT / "config/experiments/icon.yaml").read_text())
    made["datasets"]["icon"]["source"] = str(tmp_path / "icon")
    made["run"] |= {"experiments": ["downscaler_full"], "layouts": ["n1_gpu4"]}
    experiment = made["experiments"]["downscaler_full"]
    experiment["train"] |= {"activation_checkpointing": True, "micro_batch": 1}
    with pytest.raises(ConfigError) as refused:
        check_gpu_memory(Plan(made), gilbreth, said.append)
    assert "of its 40 GB (A100-40, node type N of gilbreth)" in str(refused.value)
    assert "set data.piece_blocks, or lower it, or leave this layout out" in str(refused.value)
    experiment["data"]["piece_blocks"] = 1024
    for changes in ({}, {"activation_checkpointing": False, "micro_batch": 2}):
        experiment["train"] |= changes
        check_gpu_memory(Plan(made), gilbreth, said.append)
    assert not [one for one in said if "not known" in one]
