"""Models that are loaded from a checkpoint alone and applied to named arrays give what evaluation gives."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from array_fields import independent, series

from millrace.data.account import Account
from millrace.data.recipe import MOST_BYTES, recipe_of
from millrace.errors import ConfigError, DataError
from millrace.evaluation import predict as command
from millrace.evaluation.arrays import physical
from millrace.evaluation.loaded import LoadedModel, load
from millrace.evaluation.predict import main, predict_files
from millrace.sealed import checksum, write_sealed
from millrace.systems.downscaling.ensembles import downscaled
from millrace.systems.downscaling.sampling import SamplerConfig
from millrace.systems.traffic.dataset import ScenarioDataset
from millrace.systems.traffic.formats import Traffic
from millrace.systems.traffic.smart.rollout import RolloutConfig, rollout
from millrace.systems.traffic.tracks import CLASSES, LIGHT_STATES
from millrace.systems.weather.rollout import rolled_out


def test_weather_of_another_order_and_other_units_is_forecast(saved, weather_samples):
    path, trained, _ = saved("aurora")
    model = load(path, device="cpu")
    with xr.open_dataset(weather_samples.parent / "weather.nc") as file:
        states = file.load().isel(time=slice(3, 8))
    name = next(one for one in ("2t", "t2m", "2m_temperature", "tas") if one in states)
    latitude = next(one for one in ("latitude", "lat") if one in states.dims)
    turned = states.isel({latitude: slice(None, None, -1)})
    celsius = (turned[name] - 273.15).assign_attrs(units="degC")
    made = model.predict(turned.assign({name: celsius}), days=0.75)
    hours = trained.dataset.step_hours
    given = trained.dataset.core_states(0, np.arange(6, 8)[None])
    leads = int(18 / hours)
    expected = rolled_out(trained, given, float(trained.dataset.time[7]), leads)
    values = trained.dataset.to_physical(expected).transpose(1, 2, 0)
    fields = values.reshape(leads, -1, *trained.dataset.shape)
    np.testing.assert_allclose(made["t2m"][0], fields[:, 0], rtol=2e-6)
    levels = len(trained.dataset.levels)
    np.testing.assert_allclose(made["z"][0], fields[:, 2 : 2 + levels], rtol=1e-5)
    assert made["t2m"].attrs["standard_name"] == "air_temperature"
    np.testing.assert_allclose(made["lead_time"], hours * np.arange(1, leads + 1))
    with pytest.raises(DataError, match="latitude is not that of the training"):
        model.predict(states.isel({latitude: slice(0, 8)}))
    with pytest.raises(DataError, match="models of weather take none"):
        model.predict(states, states)


def test_block_means_are_downscaled_with_members_that_seeds_decide(saved, block_samples):
    path, trained, _ = saved("downscaler")
    model, dataset = load(path, device="cpu"), trained.dataset
    config = SamplerConfig(members=2, steps=3, seed=5)
    expected = downscaled(trained.module, dataset, 0, config)
    order = np.asarray(model.recipe["samples"]["blocks"]["values"]["cell"]) - 1
    day = (np.datetime64(0, "s") + np.timedelta64(round(dataset.time[0] * 86400), "s"))[None]
    coarse = xr.Dataset(
        {"tas": (("time", "block"), expected.coarse_MV.T, {"units": "K"})},
        {"time": day.astype("M8[ns]")},
    )
    made = model.predict(coarse, members=2, steps=3, seed=5)
    np.testing.assert_allclose(
        made["tas"][0].values[:, order], expected.ensemble_ENV[..., 0], atol=2e-3
    )
    other = model.predict(coarse, members=2, steps=3, seed=6)
    assert abs(other["tas"] - made["tas"]).max() > 0.1
    fine = np.empty((1, len(order)))
    fine[:, order] = expected.truth_NV.T
    cells = xr.Dataset({"tas": (("time", "cell"), fine)}, {"time": day.astype("M8[ns]")})
    again = model.predict(cells, members=2, steps=3, seed=5)
    np.testing.assert_allclose(again["tas"], made["tas"], atol=2e-3)
    # The mesh: an icosahedron's, each cell around its centre.
    faces, n_nodes = made["mesh_face_nodes"].values, made.sizes["node"]
    assert n_nodes == made.sizes["cell"] // 2 + 2
    place = _on_sphere(made["mesh_node_lon"].values, made["mesh_node_lat"].values)[faces]
    centre = _on_sphere(made["lon"].values, made["lat"].values)
    assert (np.einsum("nij,nj->n", np.cross(place, np.roll(place, -1, axis=1)), centre) > 0).all()
    middle = place.mean(axis=1) / np.linalg.norm(place.mean(axis=1), axis=1, keepdims=True)
    edge = np.linalg.norm(place[:, 0] - place[:, 1], axis=1)
    assert (np.linalg.norm(middle - centre, axis=1) < 0.1 * edge).all()
    with pytest.raises(DataError, match="has 3 along block; expected the 80"):
        model.predict(coarse.isel(block=slice(3)))


def _on_sphere(lon, lat):
    lon, lat = np.deg2rad(lon), np.deg2rad(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def test_named_tracks_are_rolled_out_as_those_of_files(saved, motion_tracks, tmp_path):
    path, trained, _ = saved("smart")
    options = {"members": 2, "seed": 3, "top_k": 4}
    result = predict_files(
        path, motion_tracks, tmp_path / "rollouts.nc", raw="tracks", options=options, device="cpu"
    )
    dataset: ScenarioDataset = trained.dataset
    with xr.open_dataset(tmp_path / "rollouts.nc") as file:
        assert result["forecasts"] == file.sizes["scenario"] == 12
        assert set(file["scenario_name"].values.tolist()) == set(dataset.names)
        best = load(path, device="cpu")
        traffic = Traffic("tracks", motion_tracks)
        scenario = next(traffic.scenarios(0, Account()))
        pose = scenario.pose_AT3
        states = xr.Dataset(
            {key: (("agent", "time"), pose[..., n]) for n, key in enumerate(("x", "y", "heading"))}
            | {
                "type": ("agent", np.array(CLASSES)[scenario.kind_A]),
                "length": ("agent", scenario.size_A2[:, 0]),
                "width": ("agent", scenario.size_A2[:, 1]),
            },
            {"agent": list(scenario.track_A)},
            {"scenario": scenario.name},
        )
        points = np.concatenate([line.points_P2 for line in scenario.road])
        owner = [line for line in scenario.road for _ in line.points_P2]
        road = xr.Dataset(
            {
                "x": ("point", points[:, 0]),
                "y": ("point", points[:, 1]),
                "polyline": ("point", [line.name for line in owner]),
                "type": ("point", [line.type for line in owner]),
            }
        )
        if scenario.lights:
            road["state"] = (
                ("light", "time"),
                np.array(LIGHT_STATES)[list(scenario.lights.values())],
            )
            road["light_polyline"] = ("light", list(scenario.lights))
        made = best.predict(states, road, members=1, top_k=1)
        number = dataset.names.index(scenario.name)
        with_origin = (
            rollout(
                trained.module,
                dataset.gather(np.array([number])),
                RolloutConfig(samples=1, top_k=1),
            )
            .pose_BSAT3[0, 0]
            .numpy()
        )
        n = made.sizes["agent"]
        shift = (
            np.array([made[k].values[0, 0, :, 0] for k in ("x", "y")]).T - with_origin[:n, 0, :2]
        )
        assert np.abs(shift - shift[0]).max() < 1e-3  # all by the origin of the scenario
        moved = made["x"].values[0, 0] - shift[:, :1]
        np.testing.assert_allclose(moved, with_origin[:n, :, 0], atol=1e-3)
        some = best.predict(states.isel(time=slice(0, 11)), road, members=1, top_k=1)
        np.testing.assert_allclose(some["x"], made["x"], atol=1e-4)
    assert result["variables"]["x"]["baselines"]["constant_velocity"]["rmse"] > 0
    assert 0 < result["variables"]["x"]["crps"] < result["variables"]["x"]["rmse"] * 2
    with pytest.raises(DataError, match="expected the axes agent and time, with 11 to 91 steps"):
        best.predict(states.isel(time=slice(0, 5)), road)


def test_samples_of_a_plug_in_are_predicted_from_what_is_given_alone(of_arrays):
    samples = independent()
    model, trained = of_arrays(samples)
    axes = tuple(samples.coordinates)
    inputs = {
        key: (("sample", *axes)[: np.ndim(values)], values, {"units": unit})
        for key, (values, unit) in samples.inputs.items()
    }
    made = model.predict(xr.Dataset(inputs))
    batch = trained.dataset.at_times(0, np.argsort(trained.dataset.order_S))
    expected = physical(trained.dataset, trained(batch))[:, 0]
    for v, name in enumerate(samples.targets):
        np.testing.assert_allclose(
            made[name].values.reshape(len(expected), -1), expected[:, v], rtol=2e-5
        )
        assert made[name].attrs["units"] == samples.targets[name][1]
    last = list(inputs)[-1]  # one number a sample: the grid is known without it
    with pytest.raises(DataError, match="the grid of the training"):
        model.predict(xr.Dataset(inputs).isel({axes[0]: slice(0, 2)}))
    with pytest.raises(DataError, match=f"no variable '{last}'"):
        model.predict(xr.Dataset(inputs).drop_vars(last))


def test_a_series_of_a_plug_in_is_forecast_from_its_last_states(of_arrays):
    samples = series()
    model, trained = of_arrays(samples, input_steps=2, output_steps=2, future_inputs=True)
    time = samples.time[0]
    data = xr.Dataset(
        {
            key: (("time", "x"), values)
            for key, (values, _) in {**samples.inputs, **samples.targets}.items()
        },
        {"time": time},
    )
    made = model.predict(
        data[["u", "f"]].isel(time=slice(0, 11)), data[["f"]].isel(time=slice(0, 13))
    )
    expected = physical(trained.dataset, trained(trained.dataset.at_times(0, np.array([9]))))
    np.testing.assert_allclose(made["u"].values[0], expected[0, :, 0], rtol=1e-5)
    np.testing.assert_allclose(made["issue_time"], time[10:11])
    np.testing.assert_allclose(made["valid_time"].values[0], time[11:13])
    with pytest.raises(DataError, match="needs them at 2 times after it"):
        model.predict(data.isel(time=slice(0, 11)), data[["f"]].isel(time=slice(0, 12)))


def test_a_checkpoint_of_an_earlier_version_is_helped_by_sample_files(saved):
    path, trained, files = saved("regression", without=("recipe",))
    with pytest.raises(DataError, match=r"earlier version.*keep its receipt model\.json beside it"):
        load(path)
    definition = {"data": {}, "model": {"name": "regression", "channels": [8, 8, 8]}}
    described = {
        "definition": definition,
        "normalisation": trained.dataset.normalisation.to_json(),
        "dataset": trained.dataset.preparation,
    }
    vouches = {"file": path.name, "size": path.stat().st_size, "crc32": checksum(path)}
    write_sealed(path.with_suffix(".json"), {**described, "checkpoint": vouches})
    data = xr.Dataset({"tas": (("time", "block"), np.full((1, 80), 280.0))}, {"time": [18000.0]})
    with pytest.raises(DataError, match="--samples blocks=FILE"):
        load(path, device="cpu").predict(data)
    model = load(path, samples=files, device="cpu")
    made = model.predict(data)
    assert np.isfinite(made["tas"]).all()
    np.testing.assert_allclose(made["tas"].mean(), 280, atol=5)


def test_large_grids_stay_out_of_checkpoints(saved, monkeypatch):
    path, trained, _ = saved("regression")
    definition = {"data": {}, "model": {"name": "regression"}}
    assert "samples" in recipe_of("blocks", definition, trained.dataset)
    assert "samples" not in recipe_of("blocks", definition, trained.dataset, most=1000)
    assert path.stat().st_size < MOST_BYTES


def test_nothing_of_a_checkpoint_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"model": {}, "recipe": Harmful()}, tmp_path / "bad.ckpt")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        load(tmp_path / "bad.ckpt")


def test_files_of_forecasts_are_complete_or_absent(
    saved, block_samples, tmp_path, monkeypatch, capsys
):
    path, _, _ = saved("regression")
    arguments = ["--checkpoint", str(path), "--source", str(block_samples.parent / "raw")]
    for suffix in ("nc", "zarr"):
        assert (
            main([*arguments, "--output", str(tmp_path / f"fine.{suffix}"), "--device", "cpu"]) == 0
        )
    assert "tas: RMSE" in capsys.readouterr().out
    with (
        xr.open_dataset(tmp_path / "fine.nc") as one,
        xr.open_dataset(tmp_path / "fine.zarr", engine="zarr") as other,
    ):
        xr.testing.assert_allclose(one, other)
        assert one.sizes["time"] == 24
        assert json.loads(one.attrs["options"])["seed"] == 0

    def fails(self, *arguments, **options):
        pieces = whole(self, *arguments, **options)
        yield next(pieces)
        raise ConfigError("stopped")

    whole = LoadedModel.pieces
    monkeypatch.setattr(LoadedModel, "pieces", fails)
    for suffix in ("nc", "zarr"):
        assert main([*arguments, "--output", str(tmp_path / f"half.{suffix}")]) != 0
    assert not [one.name for one in tmp_path.iterdir() if "half" in one.name]
    with pytest.raises(ConfigError, match="days"):
        predict_files(path, block_samples.parent / "raw", tmp_path / "x.nc", options={"days": 1})
    with pytest.raises(ConfigError, match="expected role=FILE"):
        command.samples_by_role(["blocks.h5"])


def test_millrace_is_imported_without_torch():
    code = "import sys, millrace; assert callable(millrace.load); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "False", run.stderr
