"""The example system: its generator against closed forms, and all of it through the workflow."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "darcy"
PLUGIN = EXAMPLE / "millrace_darcy" / "system.py"


@pytest.fixture
def generator(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    from millrace_darcy import generator

    return generator


def centres(cells):
    return (np.arange(cells) + 0.5) / cells


def test_the_error_falls_with_the_square_of_the_width_of_the_cells(generator):
    errors = []
    for y_cells, x_cells in ((8, 12), (16, 24), (32, 48)):
        exact = np.sin(np.pi * centres(y_cells))[:, None] * np.sin(np.pi * centres(x_cells))
        found = generator.pressure(np.ones(exact.shape), 2 * np.pi**2 * exact)
        errors.append(np.abs(found - exact).max())
    assert errors[0] < 0.02
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 2, atol=0.05)


def test_pressure_falls_as_permeability_grows(generator):
    permeability = np.exp(generator.random_field(10, np.random.default_rng(0)))
    one, ten = (generator.pressure(factor * permeability) for factor in (1, 10))
    assert one.min() > 0
    np.testing.assert_allclose(ten, one / 10, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_flux_through_layers_is_that_of_their_harmonic_mean(generator, axis):
    k = np.random.default_rng(1).uniform(0.01, 10, size=24)
    width, faces = 1 / k.size, np.arange(k.size + 1) / k.size
    layered = np.broadcast_to(k if axis else k[:, None], (24, 24))
    found = np.moveaxis(generator.pressure(layered, axes=[axis]), axis, 0)[:, 5]
    # -(k p')' = 1 with p(0) = p(1) = 0: the flux is x - c, whose integral over 1 / k vanishes.
    middle = (faces[1:] + faces[:-1]) / 2
    c = (middle / k).sum() / (1 / k).sum()
    between = np.diff(found) * -2 * k[1:] * k[:-1] / (k[1:] + k[:-1]) / width
    np.testing.assert_allclose(between, faces[1:-1] - c, rtol=1e-9, atol=1e-12)
    slope = -(middle - c) / k
    at_faces = np.concatenate([[0], np.cumsum(slope * width)])
    # Within a layer the pressure is a parabola, which lies above the mean of its ends, and below the
    # broken line through which the finite volumes go.
    exact = (at_faces[1:] + at_faces[:-1]) / 2 + width**2 / (8 * k)
    np.testing.assert_allclose(found, exact + width**2 / (8 * k), rtol=1e-9, atol=1e-12)


def test_fields_are_random_smooth_and_of_unit_variance(generator):
    fields = np.array([generator.random_field(16, np.random.default_rng(i)) for i in range(200)])
    assert fields.std() == pytest.approx(1, abs=0.05)
    steps = np.diff(fields, axis=1).std()
    assert steps < 0.3, "cells beside each other are alike"


def test_samples_do_not_depend_on_how_many_there_are(generator, tmp_path):
    for name, samples in (("few", 3), ("more", 5)):
        generator.write_darcy(
            generator.DarcyConfig(samples=samples, cells=6, rock="two"), tmp_path / name
        )
    few, more = (
        generator.xr.load_dataset(tmp_path / name / "darcy.nc") for name in ("few", "more")
    )
    np.testing.assert_array_equal(few.permeability, more.permeability[:3])
    np.testing.assert_array_equal(few.pressure, more.pressure[:3])
    assert set(np.unique(few.permeability)) == {3, 12}


def test_the_example_is_short_and_the_workflow_does_not_know_it():
    lines = {
        path.name: len(path.read_text().splitlines())
        for path in EXAMPLE.rglob("*.py")
        if path.name != "generator.py"
    }
    assert {"system.py", "fno.py"} <= set(lines)
    assert sum(lines.values()) <= 150, lines
    for path in (ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.*")):
        if path.suffix in (".py", ".smk", ".yaml", ".rst", ""):
            assert "millrace_darcy" not in path.read_text(), path


def run(program, **environment):
    """Output of a Python program that finds neither the example nor other paths of this process."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=clean | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_is_known_and_may_be_named_as_a_plugin_as_well(tmp_path):
    information = tmp_path / "millrace_darcy-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: millrace-darcy\nVersion: 0.1.0\n")
    points = "[millrace.systems]\ndarcy = millrace_darcy.system:SYSTEM\n"
    assert points.splitlines()[1].replace(" = ", ' = "') in (EXAMPLE / "pyproject.toml").read_text()
    (information / "entry_points.txt").write_text(points)
    program = (
        "from millrace.systems.registry import load_plugins, models\n"
        f"print('fno' in models()); load_plugins([{str(PLUGIN)!r}]); print('fno' in models())"
    )
    path = os.pathsep.join([str(EXAMPLE), str(tmp_path)])
    assert run(program, PYTHONPATH=path).split() == ["True", "True"]
    assert run(program).split() == ["False", "True"], "without the path, by its file alone"


@pytest.mark.slow
def test_the_example_runs_on_one_and_two_ranks_and_is_reported(tmp_path):
    config = yaml.safe_load((EXAMPLE / "config.yaml").read_text())
    assert config["run"]["layouts"] == ["n1_gpu1", "n1_gpu2"]
    tiny = copy.deepcopy(config)
    tiny["datasets"]["square"]["demo"] = {"samples": 60, "cells": 10}
    tiny["experiments"]["fno"]["model"] |= {"modes": [4, 4], "hidden": 8, "layers": 2}
    tiny["experiments"]["fno"]["train"] |= {"epochs": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for options in (["--cores", "2"], ["--report", "report.html"]):
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "-s", str(EXAMPLE / "Snakefile"), *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment | {"OMP_NUM_THREADS": "1"},
            timeout=1800,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    table = pd.read_csv(tmp_path / "results/report/skill.csv")
    assert list(table["layout"]) == ["n1_gpu1", "n1_gpu2"]
    assert table["skill"][1] == pytest.approx(table["skill"][0], abs=1e-3)
    assert (table[["ridge_rmse", "mean_rmse", "rmse"]] > 0).all(axis=None)
    receipt = tmp_path / "results/train/fno/n1_gpu2/seed0/epoch_2.json"
    [session] = json.loads(receipt.read_text())["sessions"]
    assert session["ranks"] == 2
    figures = tmp_path / "results/evaluate/fno/n1_gpu1/seed0/figures/pressure"
    assert {path.name for path in figures.iterdir()} == {"maps.png", "scatter.png"}
    report = (tmp_path / "report.html").read_text()
    assert "inputs, ground truth, prediction and error of three test samples" in report


@pytest.mark.nightly  # a minute: `millrace check` of another system runs more often
def test_the_example_keeps_all_contracts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "millrace.cli", "check", str(PLUGIN)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 do not" in done.stdout
