"""Notebooks run on small models: what they plot is there, and is what the model forecasts."""

import numpy as np
import pytest
from notebooks import NOTEBOOKS, execute

from millrace.systems.registry import systems

pytestmark = pytest.mark.slow
TRAINED = "results/train"


def test_every_system_has_a_notebook():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(systems())


def test_weather(saved, weather_samples, monkeypatch, tmp_path):
    checkpoint, trained, _ = saved("aurora")
    given = {
        f"{TRAINED}/aurora_copies/n1_gpu2/seed0/epoch_11.ckpt": checkpoint,
        "results/data/planet/raw/weather.nc": weather_samples.parent / "weather.nc",
    }
    shown = execute("weather", given, monkeypatch, tmp_path)["at_the_end"]
    assert shown.dims == ("latitude", "longitude")
    assert shown.sizes == dict(zip(shown.dims, trained.dataset.shape, strict=True))
    assert np.isfinite(shown).all()


def test_downscaling(saved, block_samples, monkeypatch, tmp_path):
    checkpoint, _, _ = saved("downscaler")
    raw = block_samples.parent / "raw/output"
    given = {
        f"{TRAINED}/downscaler_tas/n1_gpu1/seed0/epoch_5.ckpt": checkpoint,
        "results/data/globe/raw/output/tas_0000.nc": sorted(raw.glob("*.nc"))[0],
    }
    space = execute("downscaling", given, monkeypatch, tmp_path)
    assert space["made"]["tas"].shape == (1, 4, 1280)
    means = [space["made"]["tas"][0].mean(), space["fine"]["tas"].mean()]
    assert abs(float(means[0] - means[1])) < 1


def test_traffic(saved, motion_tracks, monkeypatch, tmp_path):
    checkpoint, _, _ = saved("smart")
    given = {
        f"{TRAINED}/smart_closed_loop/n1_gpu1/seed0/epoch_3.ckpt": checkpoint,
        "results/data/town/raw": motion_tracks,
    }
    space = execute("traffic", given, monkeypatch, tmp_path)
    assert space["found"]["forecasts"] == 12
    assert space["scene"]["x"].dims == ("member", "agent", "lead_time")
