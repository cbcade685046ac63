"""Kernel sums by Triton, in processes of their own: interpreted, compiled for GPUs, and on one."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from plans import ROOT

from millrace.data.samples import open_dataset
from millrace.errors import ConfigError
from millrace.systems.groundwater import gino
from millrace.training.segment import build_trainer

VERSION = "3.7.1"
"""Of Triton, as CUDA builds of torch 2.13 ask for."""
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def triton():
    """Folder of Triton, which is no part of the lock: installed once, until `make clean`; 700 MB."""
    folder = ROOT / ".pytest_cache" / f"triton-{VERSION}"
    if find_spec("triton") is None and not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", made]
        done = subprocess.run([*command, f"triton=={VERSION}"], capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(made)
            pytest.skip(f"Triton cannot be installed here: {done.stderr.strip()[-200:]}")
        made.rename(folder)
    return folder


def passes(cases, folder, tmp_path, **variables):
    """Whether the tests of a file pass in a process with Triton."""
    found = [str(folder), os.environ.get("PYTHONPATH", "")]
    variables |= {"PYTHONPATH": os.pathsep.join(found), "TRITON_CACHE_DIR": str(tmp_path / "built")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--basetemp", tmp_path / "inner", Path(__file__).with_name(cases)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_interpreted_kernels_give_the_same_numbers(triton, tmp_path):
    passes("triton_numbers.py", triton, tmp_path, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_kernels_compile_for_gpus(triton, tmp_path):
    passes("triton_compiled.py", triton, tmp_path, TRITON_INTERPRET="0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_kernels_on_a_gpu_give_the_same_numbers(triton, tmp_path):
    passes("triton_numbers.py", triton, tmp_path, TRITON_INTERPRET="0")


@pytest.fixture
def by_triton(definition):
    return definition | {"model": definition["model"] | {"kernel_sums": "triton"}}


@pytest.mark.parametrize(
    ("package", "device", "missing"),
    [(True, "cpu", "GPU"), (False, "cpu", "GPU"), (False, "cuda", "package triton")],
)
def test_training_without_a_gpu_or_triton_is_refused(monkeypatch, package, device, missing):
    monkeypatch.setattr(gino, "HAS_TRITON", package)
    config = gino.GinoConfig(kernel_sums="triton")
    with pytest.raises(ConfigError, match=rf"^model\.kernel_sums: .*no {missing}; take bags$"):
        gino.SPEC.check(config, torch.device(device))
    gino.SPEC.check(gino.GinoConfig(), torch.device(device))
    monkeypatch.setattr(gino, "HAS_TRITON", True)
    gino.SPEC.check(config, torch.device("cuda"))


def test_a_trainer_asks_whether_its_device_will_do(samples, by_triton, alone):
    with pytest.raises(ConfigError, match=r"^model\.kernel_sums: "):
        build_trainer(by_triton, {k: str(v) for k, v in samples.items()}, 0, alone)


def test_what_was_trained_by_triton_is_evaluated_without(samples, definition):
    dataset = open_dataset("patches", samples, definition["data"], CPU)
    model = {key: value for key, value in definition["model"].items() if key != "name"}
    forecasts = []
    for sums in ("bags", "triton"):
        torch.manual_seed(0)
        config = gino.GinoConfig.parse(model | {"kernel_sums": sums}, "model")
        network = gino.SPEC.build(config, dataset)
        forecasts.append(network(dataset.batch("validation", 0, np.arange(2))))
    assert torch.equal(*forecasts)
