"""A small model trained on one mesh of an aquifer predicts another mesh of it."""

import copy
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from notebooks import execute

from millrace.config import Settings
from millrace.data.split import SplitConfig
from millrace.errors import ConfigError, DataError
from millrace.evaluation.loaded import load
from millrace.evaluation.predict import main, predict_files
from millrace.evaluation.run import evaluate_ensemble, evaluate_run
from millrace.evaluation.trained_model import TrainedModel
from millrace.models.losses import forecast, forecast_loss
from millrace.models.spec import ModelSpec
from millrace.sealed import write_sealed
from millrace.systems import registry
from millrace.systems.base import Model, System
from millrace.systems.groundwater.forecast import forecast_windows
from millrace.systems.groundwater.graphs import build_graphs
from millrace.systems.groundwater.patches import PatchConfig, extract_patches
from millrace.systems.groundwater.planes import PlaneConfig, extract_planes
from millrace.systems.groundwater.series import preprocess
from millrace.systems.groundwater.simulator.aquifer import AquiferConfig, write_aquifer
from millrace.training.deadline import Stop
from millrace.training.distributed import Ranks
from millrace.training.request import Request
from millrace.training.segment import run_segment

EPOCHS = 14
# Neither in the order of the alphabet nor in that of the files.
VARIABLES = ["mass_concentration", "head"]
FORCINGS = ["sea_level_forcing", "head_bc"]
DEFINITION = {
    "data": {"variables": VARIABLES, "forcings": FORCINGS, "input_steps": 2, "output_steps": 2},
    "model": {
        "name": "gino",
        "latent_shape": [6, 6, 3],
        "radius": 0.4,
        "modes": [4, 4, 2],
        "hidden": 8,
        "layers": 2,
        "kernel_widths": [8],
    },
    "train": {"global_batch": 8, "learning_rate": 1e-2, "loss": {"kind": "mse"}},
}


def simulate(directory, nodes, steps):
    config = AquiferConfig(slices=3, nodes_per_slice=nodes, steps=steps, spin_up=5.0)
    write_aquifer(config, directory)
    return directory


def train(base, raw, definition, epochs, own=None):
    """Preprocess, cut, train; returns checkpoint, receipt and the samples. ``own`` are units of further
    columns."""
    series = base / "series.h5"
    preprocess(
        raw,
        series,
        variables=["head", "mass_concentration", *(own or {})],
        units=own,
        forcings=["head_bc", "mass_concentration_bc", "recharge_forcing", "sea_level_forcing"],
        split=SplitConfig(train=0.7, validation=0.15, gap=4),
        clip_negative_concentration=True,
    )
    model = definition["model"]
    if model["name"] == "gfno":
        files = {"planes": base / "planes.h5"}
        extract_planes(series, files["planes"], PlaneConfig(count=2, shape=(8, 6)))
    else:
        files = {"patches": base / "patches.h5"}
        extract_patches(series, files["patches"], PatchConfig(slice_groups=1, clusters=2))
    if model["name"] == "gino":
        files["graph"] = base / "graph.h5"
        shape = tuple(model["latent_shape"])
        build_graphs(files["patches"], files["graph"], shape, model["radius"])
    return (*run(base, files, definition, epochs), files)


def run(base, files, definition, epochs, seed=0):
    """Train; returns checkpoint and receipt."""
    request = Request(
        experiment="tiny",
        layout="n1_gpu1",
        seed=seed,
        target_epoch=epochs,
        definition=definition,
        files={role: str(path) for role, path in files.items()},
        runs=str(base / "runs"),
        checkpoint=str(base / f"epoch_{epochs}.ckpt"),
        receipt=str(base / f"epoch_{epochs}.json"),
    )
    assert run_segment(request, Ranks(0, 1, torch.device("cpu"))) is Stop.NO
    return Path(request.checkpoint), Path(request.receipt)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def raw(base):
    return simulate(base / "raw", nodes=50, steps=90)


@pytest.fixture(scope="module")
def trained(base, raw):
    return train(base, raw, DEFINITION, EPOCHS)


@pytest.fixture(scope="module")
def other_mesh(base):
    return simulate(base / "finer", nodes=80, steps=60)


@pytest.mark.slow
def test_a_program_runs_on_all_patches_of_a_mesh(trained, other_mesh, tmp_path):
    output, shape = tmp_path / "mesh.nc", (2, 240, 2)
    predict_files(trained[0], other_mesh, output, workspace=tmp_path, options={"stride": 1})
    expected = xr.load_dataset(output).isel(issue_time=0)
    program = load(trained[0], device="cpu").program(other_mesh)
    site, tables = program.beside, [one.name for one in program.inputs[3:]]
    assert np.array_equal(site["mesh.node"], expected["node"])
    assert np.array_equal(site["mesh.coords"][:, 0], expected["x"])
    states, forcings, made = (torch.full(shape, torch.nan) for _ in range(3))
    with h5py.File(tmp_path / "patches.h5") as file:
        columns = [list(file.attrs["variables"]).index(name) for name in VARIABLES]
        forced = [list(file.attrs["forcings"]).index(name) for name in FORCINGS]
        for patch in ("patch_00", "patch_01"):  # what is given, along the nodes of the mesh
            given = {name: torch.from_numpy(values[()]) for name, values in file[patch].items()}
            core, n = given["core_node"], len(given["core_node"])
            known = given["forcing"].where(given["forcing_mask"].bool(), torch.nan)
            states[:, core] = given["obs"][:2, :n][..., columns]
            forcings[:, core] = known[2:4, :n][..., forced]
    for patch in ("patch_0000", "patch_0001"):
        point = site[f"{patch}.point"]
        fields = states[None][:, :, point], site["mesh.coords"][point], forcings[None][:, :, point]
        forecast = program.module(*fields, *(site[f"{patch}.{name}"] for name in tables))[0]
        made[:, point[: forecast.shape[1]]] = forecast.detach()
    assert len(site) == 2 + 2 * (1 + len(tables))
    for v, name in enumerate(VARIABLES):
        np.testing.assert_allclose(made[..., v], expected[name], rtol=1e-4)


@pytest.mark.slow
def test_members_are_spread_as_the_validation_data_of_the_training_asks_for(trained, raw, tmp_path):
    first, receipt, files = trained
    second = run(tmp_path, files, DEFINITION, 1, seed=1)
    checkpoints, receipts = (first, second[0]), (receipt, second[1])
    metrics = tmp_path / "metrics.json"
    evaluate_ensemble(checkpoints, receipts, files, metrics, tmp_path / "figure.png")
    found = {}
    for name, given in (("plain", None), ("calibrated", metrics)):
        output, scores = tmp_path / f"{name}.nc", tmp_path / f"{name}.json"
        predict_files(checkpoints, raw, output, calibration=given, metrics=scores)
        found[name] = xr.open_dataset(output).load(), json.loads(scores.read_text())
    plain, calibrated = found["plain"][0], found["calibrated"][0]
    record = json.loads(metrics.read_text())
    assert calibrated.attrs.keys() - plain.attrs.keys() == {"calibration", "calibration_factors"}
    assert "validation period" in calibrated.attrs["calibration"]
    factors = json.loads(calibrated.attrs["calibration_factors"])
    assert factors.keys() == {"head", "mass_concentration"}
    for name, factor in factors.items():
        assert factor == record["test"][name]["calibrated"]["factor"]
        means = [one[name].astype(float).mean("member") for one in (plain, calibrated)]
        size = float(abs(plain[name]).max())
        np.testing.assert_allclose(*means, atol=1e-5 * size)
        spread = [
            float(one[name].astype(float).std("member")[:, 1].mean()) for one in (plain, calibrated)
        ]
        assert spread[1] / spread[0] == pytest.approx(factor[1], rel=1e-3)
        assert abs(factor[1] - 1) > 0.01
        told = [one["variables"][name]["spread_skill"] for _, one in found.values()]
        assert told[1] != told[0]
    with pytest.raises(ConfigError, match=r"is of seeds 0, 1 of tiny at epoch 1, 14; give exactly"):
        predict_files(first, raw, tmp_path / "no.nc", calibration=metrics)
    for scores in record["test"].values():
        del scores["calibrated"]
    write_sealed(metrics, {key: value for key, value in record.items() if key != "seal"})
    with pytest.raises(ConfigError, match="holds no factors of calibrated members"):
        predict_files(checkpoints, raw, tmp_path / "no.nc", calibration=metrics)
    assert not (tmp_path / "no.nc").exists()


@pytest.mark.slow
def test_the_receipt_holds_what_other_data_needs(trained):
    receipt = json.loads(trained[1].read_text())
    with h5py.File(trained[2]["patches"]) as file:
        means = dict(zip(file.attrs["variables"], file["stats/obs_mean"][()], strict=True))
        names = list(file.attrs["forcings"])
        deviation = dict(zip(names, file["stats/forcing_std"][()], strict=True))
    said = receipt["normalisation"]
    assert {name: said["variables"][name]["mean"] for name in VARIABLES} == means
    assert said["forcings"]["head_bc"]["std"] == deviation["head_bc"]
    assert set(said["forcings"]) == set(FORCINGS)
    assert receipt["dataset"]["clip_negative_concentration"] is True
    assert receipt["dataset"]["patches"]["clusters"] == 2


def test_on_the_same_data_predictions_are_those_of_the_evaluation(trained, raw, base):
    checkpoint, receipt, files = trained
    output = base / "same.nc"
    predict_files(checkpoint, raw, output, options={"stride": 1})
    model = TrainedModel.load(checkpoint, json.loads(receipt.read_text()), files)
    _, series = forecast_windows(model, "test")
    first = int(model.dataset.starts("test")[0])
    with xr.open_dataset(output, decode_times=False) as file:
        assert [name for name in file.data_vars if "mesh" not in name] == VARIABLES
        assert [file[name].units for name in VARIABLES] == ["mg/L", "m"]
        chosen = slice(first, first + len(series.time_T), 2)
        fields_WLNV = np.stack([file[name][chosen].values for name in VARIABLES], axis=3)
        tiled_TNV = np.concatenate(list(fields_WLNV))[: len(series.time_T)]
        time = file["valid_time"][chosen].values.ravel()[: len(series.time_T)]
        assert file["issue_time"][first] == model.dataset.time[first + 1]
    np.testing.assert_array_equal(time, series.time_T)
    error = np.abs(tiled_TNV - series.prediction_TNV) / model.dataset.std
    assert error.max() < 1e-5


def test_another_mesh_is_predicted_better_than_by_persistence(trained, other_mesh, base):
    output, metrics, figure = (base / name for name in ("o.nc", "m.json", "f.png"))
    result = predict_files(trained[0], other_mesh, output, metrics=metrics, figure=figure)
    assert json.loads(metrics.read_text()) == result
    assert figure.stat().st_size > 10_000
    with xr.open_dataset(output, decode_times=False) as file:
        windows, leads, points = file["head"].shape
        assert points == len(np.unique(file["node"])) == 3 * 80
        assert (windows, leads) == (29, 2) == (result["forecasts"], file.sizes["lead"])
        assert np.isfinite(file["head"]).all()
        assert np.all(np.diff(file["valid_time"].values.ravel()) > 0)
        mesh = file["mesh_face_nodes"].values
        edges = np.ptp(file["mesh_node_x"].values[mesh], axis=1)
        assert mesh.shape[1] == 3
        assert file["z"].values[mesh].std(axis=1).max() < 0.2 * np.ptp(file["z"].values)
        assert 0 < edges.max() < np.ptp(file["x"].values)
    scores = result["variables"]
    assert scores["head"]["skill"] > 0.1  # salt moves too slowly for so short a training
    assert all(
        0 < scores[name]["rmse"] < 2 * scores[name]["baselines"]["persistence"]["rmse"]
        for name in scores
    )
    assert not [one for one in result["remarks"] if "outside the box" in one]


def test_the_notebook_predicts_and_plots(trained, raw, monkeypatch, tmp_path):
    given = {
        "results/train/gino_salt/n1_gpu1/seed0/epoch_12.ckpt": trained[0],
        "results/data/coast/raw": raw,
    }
    space = execute("groundwater", given, monkeypatch, tmp_path)
    assert set(space["found"]["variables"]) == set(VARIABLES)
    assert np.isfinite(space["last"]["head"]).all()


def test_checkpoints_together_are_an_ensemble_on_one_mesh(trained, raw, base):
    alone = predict_files(trained[0], raw, base / "alone.nc", device="cpu")
    found = predict_files([trained[0]] * 2, raw, base / "two.nc", device="cpu")
    with (
        xr.open_dataset(base / "alone.nc", decode_times=False) as one,
        xr.open_dataset(base / "two.nc", decode_times=False) as two,
    ):
        assert two["head"].dims == ("issue_time", "member", "lead", "node")
        for member in range(2):
            np.testing.assert_array_equal(two["head"][:, member], one["head"])
        np.testing.assert_array_equal(two["mesh_face_nodes"], one["mesh_face_nodes"])
    for name, scores in found["variables"].items():
        assert scores["rmse"] == pytest.approx(alone["variables"][name]["rmse"], rel=1e-6)
        assert scores["crps"] == pytest.approx(scores["mae"], rel=1e-6)
        assert scores["spread"] == scores["spread_skill"] == 0


def test_normalisation_is_that_of_the_training(trained, other_mesh, base, monkeypatch):
    """Not that of the new data: a shorter period of it must give the same forecasts."""
    short = base / "short"
    for folder in ("all", "forcings_corrected_all"):
        (short / folder).mkdir(parents=True)
        for file in sorted((other_mesh / folder).iterdir())[:8]:
            shutil.copy(file, short / folder)
    outputs = [base / "long.nc", base / "short.nc"]
    for source, output in zip((other_mesh, short), outputs, strict=True):
        predict_files(trained[0], source, output)
    with xr.open_dataset(outputs[0]) as long, xr.open_dataset(outputs[1]) as some:
        assert some.sizes["issue_time"] == 3
        for name in VARIABLES:
            difference = abs(some[name].values - long[name][:3].values) / float(long[name].std())
            assert difference.max() < 1e-5


def test_without_forcings_the_future_is_predicted(base, raw, other_mesh):
    definition = copy.deepcopy(DEFINITION)
    definition["data"] = {"variables": ["head"], "input_steps": 3, "output_steps": 2}
    (base / "ahead").mkdir()
    trained = train(base / "ahead", raw, definition, epochs=1)
    outputs = [base / "ahead/all.nc", base / "ahead/cut.nc"]
    cut = base / "ahead/cut"
    (cut / "all").mkdir(parents=True)
    for file in sorted((other_mesh / "all").iterdir())[:41]:
        shutil.copy(file, cut / "all")
    predict_files(trained[0], other_mesh, outputs[0], options={"stride": 1})
    result = predict_files(trained[0], cut, outputs[1])
    with (
        xr.open_dataset(outputs[0], decode_times=False) as whole,
        xr.open_dataset(outputs[1], decode_times=False) as file,
    ):
        assert file["issue_time"][-1] == whole["issue_time"][38]  # the last of 41 states
        step = np.diff(file["valid_time"].values[-1])[0]
        assert 0.3 < step < 0.7
        ahead, known = file["head"][-1].values, whole["head"][38].values
        assert np.abs(ahead - known).max() < 1e-5 * known.std()
    assert result["forecasts"] == 20


def test_models_on_planes_predict_too(base, raw, other_mesh):
    definition = {
        "data": {"input_steps": 2, "output_steps": 2, "boundary": "output", "radius": 0.4},
        "model": {"name": "gfno", "gno_channels": 2, "modes": [2, 2, 2], "hidden": 4, "layers": 1},
        "train": {"global_batch": 8},
    }
    (base / "planes").mkdir()
    checkpoint, receipt, files = train(base / "planes", raw, definition, epochs=1)
    outputs = [base / "planes/same.nc", base / "planes/other.nc"]
    predict_files(checkpoint, raw, outputs[0], raw="feflow_csv", options={"stride": 1})
    result = predict_files(checkpoint, other_mesh, outputs[1])
    model = TrainedModel.load(checkpoint, json.loads(receipt.read_text()), files)
    _, series = forecast_windows(model, "test")
    first = int(model.dataset.starts("test")[0])
    with xr.open_dataset(outputs[0], decode_times=False) as file:
        np.testing.assert_array_equal(file["plane"], model.dataset.plane_of_cell)
        np.testing.assert_array_equal(file["z"], model.dataset.cell_coords[:, 2])
        names = model.dataset.config.variables
        found = np.stack([file[name][first, 0].values for name in names], axis=1)
        error = found - series.prediction_TNV[0]
    assert np.abs(error / model.dataset.std).max() < 1e-5
    assert result["forecasts"] == 29
    assert np.isfinite(result["variables"]["head"]["skill"])


class Pointwise(torch.nn.Module):
    """Every point alone, without a graph."""

    def __init__(self, config, dataset):
        super().__init__()
        self.shape = dataset.config.output_steps, len(dataset.config.variables)
        self.net = torch.nn.Linear(dataset.in_channels, self.shape[0] * self.shape[1])

    def forward(self, batch):
        change = self.net(batch.x_NBC[: batch.geometry.n_core]).unflatten(2, self.shape)
        return batch.last_KBV.unsqueeze(2) + batch.scale_V * change


class NoConfig(Settings):
    pass


@pytest.fixture
def pointwise(monkeypatch):
    """A model on patches from outside, by its name."""
    spec = ModelSpec("pointwise", NoConfig, Pointwise, forecast, forecast_loss)
    system = System("outside", models=(Model("pointwise", "patches", spec),))
    monkeypatch.setattr(registry, "loaded_plugins", {"outside": system})
    return "pointwise"


@pytest.mark.slow
def test_a_column_of_ones_own_is_forecast_without_a_graph_and_keeps_its_unit(pointwise, raw, base):
    """In metrics, receipt, predictions and what the command says."""
    warm = base / "warm"
    shutil.copytree(raw, warm)
    for number, path in enumerate(sorted((warm / "all").iterdir())):
        header, *lines = path.read_text().splitlines()
        rows = [f"{line},{12 + np.sin(number / 9 + i % 7):.6f}" for i, line in enumerate(lines)]
        path.write_text("\n".join([f"{header},temperature", *rows]) + "\n")
    definition = {
        "data": {"variables": ["temperature", "head"], "input_steps": 2, "output_steps": 1},
        "model": {"name": pointwise},
        "train": {"global_batch": 8, "loss": {"kind": "mse"}},
    }
    checkpoint, receipt, files = train(warm, warm, definition, 1, own={"temperature": "degC"})
    assert json.loads(receipt.read_text())["dataset"]["units"]["temperature"] == "degC"
    figures = warm / "figures"
    evaluate_run(checkpoint, receipt, files, warm / "m.json", figures, warm / "training.png")
    scores = json.loads((warm / "m.json").read_text())
    assert scores["units"] == {"temperature": "degC", "head": "m"}
    rows = registry.get_kind("patches").table.rows(scores)
    assert [(row["variable"], row["unit"]) for row in rows] == list(scores["units"].items())
    assert (figures / "temperature/section.png").is_file()
    result = predict_files(checkpoint, warm, warm / "p.nc", figure=warm / "over_time.png")
    assert {k: one["unit"] for k, one in result["variables"].items()} == scores["units"]
    with xr.open_dataset(warm / "p.nc") as file:
        assert [file[name].units for name in ("temperature", "head")] == ["degC", "m"]
        assert abs(file["temperature"].mean() - 12) < 0.5
    with pytest.raises(DataError, match="column 'temperature' is missing"):
        predict_files(checkpoint, raw, warm / "none.nc")


def test_named_states_on_another_mesh_are_forecast_as_from_its_raw_files(trained, other_mesh, base):
    """Without any file but the checkpoint."""
    alone = shutil.copy(trained[0], base / "alone.ckpt")
    predict_files(trained[0], other_mesh, base / "files.nc", options={"stride": 1})
    columns = ["mass_concentration", "head"]
    fields = [pd.read_csv(path) for path in sorted((other_mesh / "all").iterdir())]
    given = [pd.read_csv(p) for p in sorted((other_mesh / "forcings_corrected_all").iterdir())]
    first = fields[0]
    place = {axis: ("node", first[axis.upper()].to_numpy()) for axis in "xyz"}
    place |= {name: ("node", first[name].to_numpy()) for name in ("node", "slice")}
    time = [float(one["time (d)"].iloc[0]) for one in fields]

    def arrays(tables, names):
        data = {
            n: (("time", "node"), np.stack([one[n].to_numpy() for one in tables])) for n in names
        }
        return xr.Dataset(data, {"time": time, **place})

    states, forcings = arrays(fields, columns), arrays(given, FORCINGS)
    model = load(alone, device="cpu")
    every = model.predict(states, forcings, every=True, stride=1)
    with xr.open_dataset(base / "files.nc", decode_times=False) as file:
        for name in columns:
            error = abs(every[name].values - file[name].values) / float(file[name].std())
            assert error.max() < 1e-5
        # In other units, in another order of axes, and from the last of fewer states.
        some = states.isel(time=slice(0, 7)).transpose("node", "time")
        some["head"] = (100 * some["head"]).assign_attrs(units="cm")
        last = model.predict(some, forcings)
        error = abs(last["head"].values[0] - file["head"].values[5]) / float(file["head"].std())
        assert last.sizes["issue_time"] == 1
        assert error.max() < 1e-5
    for wrong, what in (
        (states.drop_vars("head"), "no variable 'head'"),
        (states.assign(head=states["head"].assign_attrs(units="K")), "'head' is in 'K'"),
        (
            states.where(states["head"] > -1e9, drop=False).assign(head=states["head"] * np.nan),
            "finite",
        ),
    ):
        with pytest.raises(DataError, match=what):
            model.predict(wrong, forcings)
    with pytest.raises(DataError, match="forcings end 0 times after"):
        model.predict(states, forcings)
    with pytest.raises(DataError, match="forcings: expected sea_level_forcing, head_bc"):
        model.predict(states)
    with pytest.raises(ConfigError, match="days"):
        model.predict(states, forcings, days=3)


def test_command_reports_skill_and_refuses_in_one_sentence(trained, other_mesh, base, capsys):
    checkpoint, receipt, _ = trained
    arguments = ["--source", str(other_mesh), "--output", str(base / "c.nc"), "--device", "cpu"]
    assert main(["--checkpoint", str(checkpoint), *arguments]) == 0
    said = capsys.readouterr().out
    assert "c.nc: 29 forecasts" in said
    assert "head: RMSE" in said
    assert "persistence" in said
    with xr.open_dataset(base / "c.nc") as file:
        assert file.attrs["Conventions"] == "CF-1.11 UGRID-1.0"
        assert "millrace predict --checkpoint epoch_14.ckpt" in file.attrs["history"]
        assert str(base) not in str(file.attrs)
        assert file.attrs["run_hash"] == json.loads(receipt.read_text())["identity"]

    # A checkpoint of an earlier version: its receipt says how to apply the model.
    state = torch.load(checkpoint, weights_only=True)
    del state["recipe"]
    old = base / "old.ckpt"
    torch.save(state, old)
    output = base / "refused.nc"
    arguments[3] = str(output)
    assert main(["--checkpoint", str(old), *arguments]) == 65
    assert "keep its receipt old.json beside it" in capsys.readouterr().err
    damaged = base / "epoch_15.ckpt"
    damaged.write_bytes(checkpoint.read_bytes()[:-1] + b"x")
    shutil.copy(receipt, damaged.with_suffix(".json"))
    assert main(["--checkpoint", str(damaged), *arguments]) == 65
    assert "damaged" in capsys.readouterr().err
    with pytest.raises(DataError, match="no such checkpoint"):
        predict_files(base / "no.ckpt", other_mesh, output)
    with pytest.raises(ConfigError, match="stride"):
        predict_files(checkpoint, other_mesh, output, options={"stride": 0})
    with pytest.raises(ConfigError, match=r"with the suffix \.nc"):
        predict_files(checkpoint, other_mesh, base / "refused.h5")
    few = base / "few"
    (few / "all").mkdir(parents=True)
    for file in sorted((other_mesh / "all").iterdir())[:3]:
        shutil.copy(file, few / "all")
    with pytest.raises(DataError, match="3 output times; this model needs 4"):
        predict_files(checkpoint, few, output)
    assert not list(base.glob("*refused*"))
