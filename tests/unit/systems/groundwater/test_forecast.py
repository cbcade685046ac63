"""Forecasts and rollouts of models whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from millrace.errors import DataError, ExitCode
from millrace.evaluation.trained_model import TrainedModel
from millrace.launch.launcher import launch
from millrace.systems.groundwater.forecast import forecast_windows, rollout
from millrace.systems.groundwater.gino import SPEC
from millrace.systems.groundwater.patch_dataset import PatchDataset
from millrace.systems.groundwater.settings import WindowConfig
from millrace.training.request import Request


@pytest.fixture
def model(samples, definition):
    dataset = PatchDataset(**samples, config=WindowConfig.parse(definition["data"], "data"))

    def build(forecast):
        return TrainedModel(SPEC, forecast, dataset)

    return build


def truth(batch):
    return batch.y_KBTV


def persistence(batch):
    return batch.last_KBV.unsqueeze(2).expand_as(batch.y_KBTV)


def test_truth_scores_one_and_persistence_zero(model):
    for forecast, skill in ((truth, 1.0), (persistence, 0.0)):
        result, _ = forecast_windows(model(forecast), "test")
        ahead = rollout(model(forecast), "test")["variables"]
        for variable in ("head", "mass_concentration"):
            assert result[variable]["skill"] == pytest.approx(skill, abs=1e-5)
            assert ahead[variable]["skill"] == pytest.approx(skill, abs=1e-5)


def test_errors_of_windows_are_those_of_all_together(model):
    one = model(persistence)
    result, series = forecast_windows(one, "test")
    starts, length = one.dataset.starts("test"), one.dataset.config.length
    for variable, errors in series.cases["errors"].items():
        together = np.sqrt(np.mean(np.square(errors["rmse"]["values"])))
        assert together == pytest.approx(result[variable]["rmse"], rel=1e-6)
    blocks = np.array(series.cases["blocks"])
    assert blocks.tolist() == ((starts - starts[0]) // length).tolist(), "windows follow each other"
    issued = one.dataset.time[starts + one.dataset.config.input_steps - 1]
    assert [float(name) for name in series.cases["names"]] == pytest.approx(issued, abs=1e-6)


def test_series_is_the_true_series_in_order(model, samples):
    import h5py

    _, series = forecast_windows(model(truth), "test")
    with h5py.File(samples["patches"]) as file:
        steps = np.searchsorted(file["time"][()], series.time_T)
        for p in ("patch_00", "patch_01"):
            core = file[p]["core_node"][()]
            expected = file[p]["obs"][()][steps][:, : len(core)]
            got = series.prediction_TNV[:, core]
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-2)
    assert (np.diff(series.time_T) > 0).all()
    issue = steps - 1 - np.arange(len(steps)) % model(truth).dataset.config.output_steps
    with h5py.File(samples["patches"]) as file:
        np.testing.assert_array_equal(series.issue_T, file["time"][()][issue])


def test_rollout_feeds_on_itself_and_ghosts_follow_their_patches(model):
    """Each step adds one: after k rounds every point of every patch, ghosts too, is k steps up."""
    seen = []

    def climb(batch):
        seen.append(batch)
        steps = torch.arange(1, batch.y_KBTV.shape[2] + 1).reshape(1, 1, -1, 1)
        return batch.last_KBV.unsqueeze(2) + steps

    climber = model(climb)
    rollout(climber, "test", max_steps=6)
    by_patch = {0: seen[0::2], 1: seen[1::2]}
    for batches in by_patch.values():
        first, later = batches[0], batches[1:]
        assert len(later) >= 1
        for k, batch in enumerate(later, start=1):
            last = batch.x_NBC[:, :, 4:6]
            risen = last - first.x_NBC[:, :, 4:6]
            torch.testing.assert_close(risen, torch.full_like(risen, 2.0 * k))


@pytest.mark.slow
def test_damaged_checkpoint_is_refused(samples, definition, tmp_path):
    request = Request(
        experiment="wave",
        layout="n1_gpu1",
        seed=0,
        target_epoch=1,
        definition=definition,
        files={role: str(path) for role, path in samples.items()},
        runs=str(tmp_path / "runs"),
        checkpoint=str(tmp_path / "epoch_1.ckpt"),
        receipt=str(tmp_path / "epoch_1.json"),
    )
    assert launch(request, cpus=1) == ExitCode.OK
    checkpoint, receipt = Path(request.checkpoint), json.loads(Path(request.receipt).read_text())
    assert forecast_windows(TrainedModel.load(checkpoint, receipt, samples), "test")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.unlink()
    checkpoint.write_bytes(content)
    with pytest.raises(DataError, match="damaged, its size or checksum"):
        TrainedModel.load(checkpoint, receipt, samples)
