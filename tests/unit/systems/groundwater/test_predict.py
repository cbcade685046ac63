"""A small model trained on one mesh of an aquifer predicts another mesh of it."""

import copy
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from millrace.config import Settings
from millrace.data.split import SplitConfig
from millrace.errors import ConfigError, DataError
from millrace.evaluation.predict import main
from millrace.evaluation.run import evaluate_run
from millrace.evaluation.trained_model import TrainedModel
from millrace.models.losses import forecast, forecast_loss
from millrace.models.spec import ModelSpec
from millrace.systems import registry
from millrace.systems.base import Model, System
from millrace.systems.groundwater.forecast import forecast_windows
from millrace.systems.groundwater.graphs import build_graphs
from millrace.systems.groundwater.patches import PatchConfig, extract_patches
from millrace.systems.groundwater.planes import PlaneConfig, extract_planes
from millrace.systems.groundwater.predict import predict
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
    request = Request(
        experiment="tiny",
        layout="n1_gpu1",
        seed=0,
        target_epoch=epochs,
        definition=definition,
        files={role: str(path) for role, path in files.items()},
        runs=str(base / "runs"),
        checkpoint=str(base / f"epoch_{epochs}.ckpt"),
        receipt=str(base / f"epoch_{epochs}.json"),
    )
    assert run_segment(request, Ranks(0, 1, torch.device("cpu"))) is Stop.NO
    return Path(request.checkpoint), Path(request.receipt), files


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
    output = base / "same.h5"
    predict(checkpoint, receipt, raw, output, stride=1)
    model = TrainedModel.load(checkpoint, json.loads(receipt.read_text()), files)
    _, series = forecast_windows(model, "test")
    first = int(model.dataset.starts("test")[0])
    with h5py.File(output) as file:
        assert list(file.attrs["variables"]) == VARIABLES
        assert list(file.attrs["units"]) == ["mg/L", "m"]
        chosen = slice(first, first + len(series.time_T), 2)
        tiled_TNV = np.concatenate(list(file["prediction"][chosen]))[: len(series.time_T)]
        time = file["time"][chosen].ravel()[: len(series.time_T)]
        assert file["issue_time"][first] == model.dataset.time[first + 1]
        assert file["prediction"].fletcher32
    np.testing.assert_array_equal(time, series.time_T)
    error = np.abs(tiled_TNV - series.prediction_TNV) / model.dataset.std
    assert error.max() < 1e-5


def test_another_mesh_is_predicted_better_than_by_persistence(trained, other_mesh, base):
    output, metrics, figure = (base / name for name in ("o.h5", "m.json", "f.png"))
    result = predict(*trained[:2], other_mesh, output, metrics=metrics, figure=figure)
    assert json.loads(metrics.read_text()) == result
    assert figure.stat().st_size > 10_000
    with h5py.File(output) as file:
        windows, leads, points, _ = file["prediction"].shape
        assert points == result["points"] == len(np.unique(file["node"][()])) == 3 * 80
        assert (windows, leads) == (29, 2) == (result["windows"], len(file["time"][0]))
        assert np.isfinite(file["prediction"][()]).all()
        assert np.all(np.diff(file["time"][()].ravel()) > 0)
    scores = result["variables"]
    assert scores["head"]["skill"] > 0.1  # salt moves too slowly for so short a training
    assert all(
        0 < scores[name]["rmse"] < 2 * scores[name]["persistence"]["rmse"] for name in scores
    )
    assert result["points_outside_training_box"] < 0.05


def test_normalisation_is_that_of_the_training(trained, other_mesh, base, monkeypatch):
    """Not that of the new data: a shorter period of it must give the same forecasts."""
    short = base / "short"
    for folder in ("all", "forcings_corrected_all"):
        (short / folder).mkdir(parents=True)
        for file in sorted((other_mesh / folder).iterdir())[:8]:
            shutil.copy(file, short / folder)
    outputs = [base / "long.h5", base / "short.h5"]
    for source, output in zip((other_mesh, short), outputs, strict=True):
        predict(*trained[:2], source, output)
    with h5py.File(outputs[0]) as long, h5py.File(outputs[1]) as some:
        assert some["prediction"].shape[0] == 3
        scale = long["prediction"][()].std(axis=(0, 1, 2))
        difference = np.abs(some["prediction"][()] - long["prediction"][:3]) / scale
    assert difference.max() < 1e-5


def test_without_forcings_the_future_is_predicted(base, raw, other_mesh):
    definition = copy.deepcopy(DEFINITION)
    definition["data"] = {"variables": ["head"], "input_steps": 3, "output_steps": 2}
    (base / "ahead").mkdir()
    trained = train(base / "ahead", raw, definition, epochs=1)
    outputs = [base / "ahead/all.h5", base / "ahead/cut.h5"]
    cut = base / "ahead/cut"
    (cut / "all").mkdir(parents=True)
    for file in sorted((other_mesh / "all").iterdir())[:41]:
        shutil.copy(file, cut / "all")
    predict(*trained[:2], other_mesh, outputs[0], stride=1)
    result = predict(*trained[:2], cut, outputs[1])
    with h5py.File(outputs[0]) as whole, h5py.File(outputs[1]) as file:
        assert file["issue_time"][-1] == whole["issue_time"][38]  # the last of 41 states
        step = np.diff(file["time"][-1])[0]
        assert 0.3 < step < 0.7
        ahead, known = file["prediction"][-1], whole["prediction"][38]
        assert np.abs(ahead - known).max() < 1e-5 * known.std()
    assert result["variables"]["head"]["count"] == 19 * 2 * 240


def test_models_on_planes_predict_too(base, raw, other_mesh):
    definition = {
        "data": {"input_steps": 2, "output_steps": 2, "boundary": "output", "radius": 0.4},
        "model": {"name": "gfno", "gno_channels": 2, "modes": [2, 2, 2], "hidden": 4, "layers": 1},
        "train": {"global_batch": 8},
    }
    (base / "planes").mkdir()
    checkpoint, receipt, files = train(base / "planes", raw, definition, epochs=1)
    outputs = [base / "planes/same.h5", base / "planes/other.h5"]
    predict(checkpoint, receipt, raw, outputs[0], stride=1)
    result = predict(checkpoint, receipt, other_mesh, outputs[1])
    model = TrainedModel.load(checkpoint, json.loads(receipt.read_text()), files)
    _, series = forecast_windows(model, "test")
    first = int(model.dataset.starts("test")[0])
    with h5py.File(outputs[0]) as file:
        assert len(file["plane"]) == len(file["coords"])
        error = file["prediction"][first][0] - series.prediction_TNV[0]
    assert np.abs(error / model.dataset.std).max() < 1e-5
    assert result["windows"] == 29
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
    result = predict(checkpoint, receipt, warm, warm / "p.h5", figure=warm / "over_time.png")
    assert result["units"] == scores["units"]
    with h5py.File(warm / "p.h5") as file:
        assert list(file.attrs["units"]) == ["degC", "m"]
        assert abs(file["prediction"][..., 0].mean() - 12) < 0.5
    with pytest.raises(DataError, match="column 'temperature' is missing"):
        predict(checkpoint, receipt, raw, warm / "none.h5")


def test_command_reports_skill_and_refuses_in_one_sentence(trained, other_mesh, base, capsys):
    checkpoint, receipt, _ = trained
    arguments = ["--source", str(other_mesh), "--output", str(base / "c.h5"), "--device", "cpu"]
    assert main(["--checkpoint", str(checkpoint), *arguments]) == 0
    said = capsys.readouterr().out
    assert "29 forecasts of 240 points" in said
    assert "head: RMSE" in said

    old = base / "old.json"
    described = json.loads(receipt.read_text())
    del described["normalisation"], described["seal"]
    old.write_text(json.dumps(described))
    output = base / "refused.h5"
    arguments[3] = str(output)
    assert main(["--checkpoint", str(checkpoint), "--receipt", str(old), *arguments]) == 65
    assert (
        "'normalisation', it is no receipt or was written by an earlier" in capsys.readouterr().err
    )
    damaged = base / "damaged.ckpt"
    damaged.write_bytes(checkpoint.read_bytes()[:-1] + b"x")
    assert main(["--checkpoint", str(damaged), "--receipt", str(receipt), *arguments]) == 65
    assert "damaged" in capsys.readouterr().err
    with pytest.raises(DataError, match="no such checkpoint"):
        predict(base / "no.ckpt", receipt, other_mesh, output)
    with pytest.raises(ConfigError, match="stride = 0"):
        predict(checkpoint, receipt, other_mesh, output, stride=0)
    few = base / "few"
    (few / "all").mkdir(parents=True)
    for file in sorted((other_mesh / "all").iterdir())[:3]:
        shutil.copy(file, few / "all")
    with pytest.raises(DataError, match="3 output times; this model needs 4"):
        predict(checkpoint, receipt, few, output)
    assert not list(base.glob("*refused*"))
