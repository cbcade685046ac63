"""Windows of patches against the arrays they are slices of."""

import shutil

import h5py
import numpy as np
import pytest
import torch

from millrace.data.samples import open_dataset
from millrace.data.split import SPLITS
from millrace.errors import ConfigError
from millrace.systems.groundwater.group_dataset import windows
from millrace.systems.groundwater.patch_dataset import LatentGeometry, PatchDataset
from millrace.systems.groundwater.settings import WindowConfig

CPU = torch.device("cpu")


@pytest.fixture
def dataset(samples, definition):
    return PatchDataset(**samples, config=WindowConfig.parse(definition["data"], "data"))


@pytest.fixture
def raw(samples):
    with h5py.File(samples["patches"]) as file:
        patch = {name: file["patch_01"][name][()] for name in file["patch_01"]}
        stats = {name: value[()] for name, value in file["stats"].items()}
        return patch | stats | {"split": file["split"][()]}


def test_batch_is_a_slice_of_the_series(dataset, raw):
    index = np.array([4, 0])
    batch = dataset.batch("validation", 1, index)
    starts = dataset.starts("validation")[index]
    state = (raw["obs"] - raw["obs_mean"]) / raw["obs_std"]
    n_core = len(raw["core_node"])
    for b, start in enumerate(starts):
        past = np.concatenate([state[start + t] for t in range(3)], axis=1)
        close(batch.x_NBC[:, b, :6], past)
        close(batch.last_KBV[:, b], state[start + 2, :n_core])
        close(batch.y_KBTV[:, b], state[start + 3 : start + 5, :n_core].swapaxes(0, 1))
        mask = raw["forcing_mask"][start + 3 : start + 5, :, 0].T
        value = raw["forcing"][start + 3 : start + 5, :, 0].T / 0.5 * mask
        close(batch.x_NBC[:, b, 6:10], np.stack([value, mask], axis=2).reshape(len(value), 4))
    assert batch.x_NBC.shape[2] == dataset.in_channels


def test_no_condition_is_not_a_value_of_zero(dataset, raw):
    """A node without boundary condition differs from one with a value equal to the mean."""
    batch = dataset.batch("train", 1, np.arange(8))
    masks = batch.x_NBC[:, :, [7, 9]]
    assert set(masks.unique().tolist()) == {0.0, 1.0}


def test_no_window_straddles_two_splits(dataset, raw):
    for split, (begin, end) in zip(SPLITS, raw["split"], strict=True):
        starts = dataset.starts(split)
        assert starts[0] == begin
        assert starts[-1] + dataset.config.length == end


def test_stride_thins_the_training_windows_only(samples, definition):
    config = WindowConfig.parse(definition["data"] | {"stride": 3}, "data")
    dataset = PatchDataset(**samples, config=config)
    assert set(np.diff(dataset.starts("train"))) == {3}
    assert set(np.diff(dataset.starts("test"))) == {1}


def test_window_longer_than_the_gap_is_refused(samples, definition):
    config = WindowConfig.parse(definition["data"] | {"input_steps": 6}, "data")
    with pytest.raises(ConfigError, match=r"= 8, but the splits .* are 6 steps apart"):
        PatchDataset(**samples, config=config)


def test_unknown_variable_says_what_there_is(samples, definition):
    config = WindowConfig.parse(definition["data"] | {"variables": ["heat"]}, "data")
    with pytest.raises(ConfigError, match="no 'heat'; it has head, mass_concentration"):
        PatchDataset(**samples, config=config)


def test_without_a_graph_only_the_neighbour_tables_are_missing(samples, definition, dataset):
    """And the run hash of models with a graph stays what it is."""
    files = {"patches": str(samples["patches"])}
    plain = open_dataset("patches", files, definition["data"], CPU)
    ours, theirs = (one.batch("test", 1, np.array([2, 0])) for one in (plain, dataset))
    for name in ("x_NBC", "last_KBV", "y_KBTV", "scale_V", "variance_weight_KV", "weight_B"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.geometry.points_N3, theirs.geometry.points_N3)
    assert ours.geometry.n_core == theirs.geometry.n_core
    assert [isinstance(one.geometry, LatentGeometry) for one in (ours, theirs)] == [False, True]
    assert plain.definition == {**dataset.definition, "digest": "digest90"}
    assert dataset.definition["digest"] == "digest90/g"
    both = open_dataset("patches", {"patches": [*files.values()] * 2}, definition["data"], CPU)
    assert both.groups("test").tolist() == [*dataset.groups("test")] * 2


def test_units_are_those_of_the_file(samples, dataset, definition, tmp_path):
    """Files of earlier versions have none."""
    assert dataset.units == {"head": "m", "mass_concentration": "mg/L"}
    newer = tmp_path / "patches.h5"
    shutil.copy(samples["patches"], newer)
    with h5py.File(newer, "a") as file:
        file.attrs["units"] = ["ft", "g/L"]
    units = open_dataset("patches", {"patches": newer}, definition["data"], CPU).units
    assert units == {"head": "ft", "mass_concentration": "g/L"}


def test_small_cache_gives_the_same_batches(samples, definition, dataset):
    config = WindowConfig.parse(definition["data"], "data")
    forgetful = PatchDataset(**samples, config=config, cache_bytes=1)
    for group in (0, 1, 0):
        ours, theirs = (v.batch("train", group, np.array([3])) for v in (forgetful, dataset))
        assert torch.equal(ours.x_NBC, theirs.x_NBC)
    assert len(forgetful.groups_in_memory) == 1


def test_physical_units_round_trip(dataset, raw):
    batch = dataset.batch("test", 1, np.array([0]))
    start = dataset.starts("test")[0]
    n_core = len(raw["core_node"])
    truth = raw["obs"][start + 2, :n_core]
    np.testing.assert_allclose(
        dataset.to_physical(batch.last_KBV[:, 0]), truth, rtol=1e-5, atol=1e-2
    )


def close(tensor, array):
    np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_windows_are_slices_of_the_series_and_stay_in_their_channels(steps):
    series_TCN, first = torch.randn(9, 2, 5), np.array([0, 9 - steps, 2, 2])
    expected = torch.stack([series_TCN[t : t + steps] for t in first]).permute(3, 0, 1, 2)
    assert torch.equal(windows(series_TCN, first, steps), expected)
    # Of some of the points, and among other channels.
    assert torch.equal(windows(series_TCN[:, :, :3], first, steps), expected[:3])
    rows = torch.full((4, 2 * steps + 3, 5), 7.0)
    windows(series_TCN, first, steps, rows[:, 1:-2])
    assert torch.equal(rows[:, 1:-2].permute(2, 0, 1), expected.flatten(2))
    assert (rows[:, [0, -2, -1]] == 7).all()
    with pytest.raises(IndexError):
        windows(series_TCN, np.array([10 - steps]), steps)


def test_points_of_a_channel_are_one_piece_of_memory(dataset):
    """That is what makes windows fast to cut; batches of forecasts that feed on their own are no others."""
    batch = dataset.batch("train", 1, np.array([4, 0]))
    fed = dataset.with_states(batch, batch.past_NBTV + 1)
    for one in (batch, fed):
        assert one.x_NBC.permute(1, 2, 0).is_contiguous()
        assert torch.equal(one.last_KBV, one.past_NBTV[: one.geometry.n_core, :, -1])
    assert batch.y_KBTV.permute(1, 2, 3, 0).is_contiguous()
    assert torch.equal(fed.past_NBTV, batch.past_NBTV + 1), "the batch before is not written to"
