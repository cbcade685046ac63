"""Several checkpoints, or perturbed first states, forecast as members of an ensemble with fair scores."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import scoringrules
import torch
import xarray as xr

from millrace.errors import ConfigError
from millrace.evaluation.ensemble_forecasts import check_alike
from millrace.evaluation.loaded import load
from millrace.evaluation.predict import main


def reweighted(checkpoint, path, factor):
    """Another model: the same with other weights."""
    state = torch.load(checkpoint, weights_only=True)
    state["model"] = {
        key: value * factor if "decoder" in key and value.is_floating_point() else value
        for key, value in state["model"].items()
    }
    torch.save(state, path)
    return path


@pytest.fixture
def raw(weather_samples, tmp_path):
    """A few days of weather, in a file of their own."""
    path = tmp_path / "raw/weather.nc"
    path.parent.mkdir()
    with xr.open_dataset(weather_samples.parent / "weather.nc") as file:
        file.isel(time=slice(0, 9)).to_netcdf(path)
    return path


@pytest.mark.slow
def test_checkpoints_are_members_with_fair_scores(saved, raw, tmp_path, capsys):
    first, _, _ = saved("aurora")
    paths = [first, reweighted(first, tmp_path / "other.ckpt", 3)]
    common = ["--source", str(raw), "--format", "weather", "--days", "0.5", "--device", "cpu"]
    outputs = []
    for n, some in enumerate((paths, *([path] for path in paths))):
        output, metrics = tmp_path / f"{n}.nc", tmp_path / f"{n}.json"
        given = ["--checkpoint", *map(str, some), "--output", str(output)]
        assert main([*given, "--metrics", str(metrics), *common]) == 0
        outputs.append(xr.open_dataset(output).load())
    assert "spread / error" in capsys.readouterr().out
    together, *alone = outputs
    assert together["z"].dims[:2] == ("issue_time", "member")
    for n, one in enumerate(alone):
        np.testing.assert_array_equal(together["z"][:, n], one["z"])
    assert together.attrs["checkpoint"] == "model.ckpt, other.ckpt"
    found = json.loads((tmp_path / "0.json").read_text())["variables"]["t2m"]
    with xr.open_dataset(raw) as file:
        known = (together.valid_time[:, -1].values <= file.time[-1].values).nonzero()[0]
        together = together.isel(issue_time=known)
        truth = file["2m_temperature"].sel(time=together.valid_time.values.ravel()).load()
    truth = truth.sortby("latitude", ascending=False).values.reshape(together["t2m"][:, 0].shape)
    members = np.moveaxis(together["t2m"].values.astype(float), 1, -1)
    area = np.cos(np.deg2rad(together.latitude.values))
    area = np.broadcast_to((area / area.mean())[:, None], truth.shape)

    def mean(values):
        return np.average(values, weights=area)

    crps = scoringrules.crps_ensemble(truth.astype(float), members, estimator="fair")
    assert found["crps"] == pytest.approx(mean(crps), rel=1e-5)
    spread = np.sqrt(mean(members.var(axis=-1, ddof=1)))
    error = np.sqrt(mean((members.mean(axis=-1) - truth) ** 2))
    assert found["spread"] == pytest.approx(spread, rel=1e-5)
    assert found["spread_skill"] == pytest.approx(np.sqrt(3 / 2) * spread / error, rel=1e-5)


def test_models_on_other_samples_do_not_forecast_together():
    def loaded(name, **data):
        recipe = {"kind": "weather", "preparation": {}, "definition": {"data": data}}
        return SimpleNamespace(recipe=recipe, about={"checkpoint": name})

    check_alike([loaded("a.ckpt"), loaded("b.ckpt")])
    with pytest.raises(ConfigError, match=r"b.ckpt takes other samples than a.ckpt; an ensemble"):
        check_alike([loaded("a.ckpt"), loaded("b.ckpt", input_steps=1)])


def test_members_begin_from_states_that_differ_as_much_as_asked(saved, raw):
    checkpoint, trained, _ = saved("aurora")
    model, dataset = load(checkpoint, device="cpu"), trained.dataset
    with xr.open_dataset(raw) as file:
        states = file.load()
    options = {"days": 0.25, "members": 3, "seed": 1}
    made = model.predict(states, perturb=1e-2, **options)
    again = model.predict(states, perturb=1e-2, **options)
    xr.testing.assert_identical(made, again)
    assert made["t2m"].sizes["member"] == 3
    # An untrained model with a residual head changes its last state little: the change is still there.
    other = model.predict(states, perturb=2e-2, **options)
    base = model.predict(states, days=0.25)["t2m"]
    small, large = ((one["t2m"] - base).std(("latitude", "longitude")) for one in (made, other))
    np.testing.assert_allclose(large / small, 2, rtol=0.1)
    step = (dataset.increment_scale * dataset.std)[0]
    np.testing.assert_allclose(small / (1e-2 * step), 1, rtol=0.3)
    with pytest.raises(ConfigError, match="forecasts from one state are the same"):
        model.predict(states, **options)
