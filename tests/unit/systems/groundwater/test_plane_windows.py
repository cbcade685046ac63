import h5py
import numpy as np
import pytest
import torch

from millrace.errors import ConfigError
from millrace.systems.groundwater.plane_dataset import PlaneDataset
from millrace.systems.groundwater.settings import PlaneWindowConfig

CONFIG = PlaneWindowConfig(input_steps=4, output_steps=4, stride=2, radius=0.4)


def _dataset(planes, **changes):
    return PlaneDataset(planes, CONFIG.replaced(**changes))


def test_no_window_touches_two_periods(plane_samples):
    dataset = _dataset(plane_samples)
    with h5py.File(plane_samples) as file:
        split = file["split"][()]
    last = []
    for period, (begin, end) in zip(("train", "validation", "test"), split, strict=True):
        starts = dataset.starts(period)
        assert starts.min() == begin
        assert starts.max() + CONFIG.length <= end
        assert starts.max() + CONFIG.length + CONFIG.stride > end
        last.append((starts.min(), starts.max() + CONFIG.length))
        assert dataset.groups(period).tolist() == [len(starts)] * 2
    assert last[0][1] <= last[1][0] < last[1][1] <= last[2][0]


def test_a_window_longer_than_the_gap_is_refused(plane_samples):
    with pytest.raises(ConfigError, match=r"at least 12"):
        _dataset(plane_samples, input_steps=6, output_steps=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_steps": 3}, "same number of both"),
        ({"boundary": "both"}, "expected one of input, output"),
        ({"radius": 0.0}, "above 0"),
    ],
)
def test_configuration_is_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        PlaneWindowConfig.parse({**CONFIG.essentials(), **changes}, "data")


def test_unknown_variable(plane_samples):
    with pytest.raises(ConfigError, match="no 'pressure'; it has head, mass_concentration"):
        _dataset(plane_samples, variables=("pressure",))


@pytest.mark.parametrize("boundary", ["input", "output"])
def test_samples_are_what_the_file_says(plane_samples, boundary):
    dataset = _dataset(plane_samples, boundary=boundary)
    batch = dataset.batch("validation", 1, np.array([0, 2]))
    starts = dataset.starts("validation")[[0, 2]]
    with h5py.File(plane_samples) as file:
        plane = {name: data[()] for name, data in file["plane_01"].items()}
        stats = {name: data[()] for name, data in file["stats"].items()}
    mask = plane["mask"].astype(bool)
    field = (plane["field"] - stats["obs_mean"]) / stats["obs_std"]
    n_points = plane["bc"].shape[1]
    for b, start in enumerate(starts):
        past, future = slice(start, start + 4), slice(start + 4, start + 8)
        np.testing.assert_allclose(
            batch.y_KBTV[:, b].numpy(), field[future][:, mask].swapaxes(0, 1), atol=1e-5
        )
        np.testing.assert_allclose(batch.last_KBV[:, b].numpy(), field[start + 3, mask], atol=1e-5)
        states = batch.features_BFTHW[b, 6:].numpy()
        np.testing.assert_allclose(
            states, np.where(mask[..., None], field[past], 0).transpose(3, 0, 1, 2), atol=1e-5
        )
        given = plane["bc_mask"][past if boundary == "input" else future]
        value = plane["bc"][past if boundary == "input" else future]
        value = (value - stats["bc_mean"]) / stats["bc_std"] * given
        x = batch.x_NBC[:, b].numpy().reshape(4, n_points, 4)
        np.testing.assert_allclose(x[..., :2], value, atol=1e-5)
        np.testing.assert_array_equal(x[..., 2:], given)
    assert not plane["bc_mask"].all()


def test_geometry_lies_in_the_unit_cube(plane_samples):
    dataset = _dataset(plane_samples)
    geometry = dataset.batch("train", 0, np.array([0])).geometry
    assert geometry.latent_shape == (4, 7, 6)
    for points in (geometry.boundary_N3, geometry.latent_G3):
        assert points.min() >= 0
        assert points.max() <= 1
    corner = geometry.latent_G3.reshape(4, 7, 6, 3)[-1, -1, -1]
    assert corner.tolist() == [1, 1, 1]
    distance = torch.cdist(geometry.latent_G3.double(), geometry.boundary_N3.double())
    table = geometry.into_latent
    assert len(table.index) == int((distance <= CONFIG.radius).sum()) > 0
    assert (distance[table.row, table.index] <= CONFIG.radius + 1e-6).all()
    constants = dataset.batch("train", 1, np.array([0])).features_BFTHW[0, :6]
    assert constants.min() >= 0
    assert constants.max() == 1


def test_samples_of_a_batch_do_not_depend_on_each_other(plane_samples):
    dataset = _dataset(plane_samples)
    batch = dataset.batch("train", 0, np.array([3, 0, 5]), [1.0, 0.0, 1.0])
    assert batch.weight_B.tolist() == [1, 0, 1]
    for b, window in enumerate([3, 0, 5]):
        alone = dataset.batch("train", 0, np.array([window]))
        assert alone.geometry is batch.geometry
        torch.testing.assert_close(alone.x_NBC[:, 0], batch.x_NBC[:, b])
        torch.testing.assert_close(alone.features_BFTHW[0], batch.features_BFTHW[b])
        torch.testing.assert_close(alone.y_KBTV[:, 0], batch.y_KBTV[:, b])


def test_replaced_states_are_those_of_a_later_window(plane_samples):
    dataset = _dataset(plane_samples)
    batch = dataset.at_times(0, np.array([5]))
    other = dataset.core_states(0, np.arange(11, 15)[None])
    replaced = dataset.with_states(batch, other)
    torch.testing.assert_close(
        replaced.features_BFTHW[:, 6:], dataset.at_times(0, np.array([11])).features_BFTHW[:, 6:]
    )
    torch.testing.assert_close(replaced.last_KBV, other[:, :, -1])


def test_cells_are_numbered_over_all_planes(plane_samples):
    dataset = _dataset(plane_samples)
    numbers = np.concatenate(dataset.core_nodes)
    assert numbers.tolist() == list(range(len(dataset.cell_coords)))
    assert len(dataset.core_nodes[1]) == len(dataset.batch("train", 1, np.array([0])).last_KBV)
    low, high = dataset.cell_coords.min(axis=0), dataset.cell_coords.max(axis=0)
    assert (low >= [1000, 420, -20]).all()
    assert (high <= [1054, 510, 2]).all()


def test_identity_names_data_and_settings(plane_samples):
    identity = _dataset(plane_samples).definition
    assert identity["input_steps"] == 4
    assert identity["digest"] == _dataset(plane_samples, stride=3).definition["digest"]
