"""Neighbour tables of patches: right neighbours, all core points covered."""

import re

import numpy as np
import pytest

from millrace.data.hdf5 import open_checked
from millrace.data.split import SplitConfig
from millrace.errors import ConfigError
from millrace.systems.groundwater.graphs import SCHEMA, build_graphs, latent_grid, unit_coords
from millrace.systems.groundwater.patches import PatchConfig, extract_patches
from millrace.systems.groundwater.series import preprocess

SHAPE = (6, 5, 4)


@pytest.fixture
def patches(aquifer, tmp_path):
    preprocess(
        aquifer.base,
        tmp_path / "series.h5",
        variables=("head",),
        forcings=(),
        split=SplitConfig(train=0.6, validation=0.2, gap=1),
    )
    extract_patches(
        tmp_path / "series.h5", tmp_path / "patches.h5", PatchConfig(slice_groups=2, clusters=2)
    )
    return tmp_path / "patches.h5"


def dense(indptr, index, columns) -> np.ndarray:
    table = np.zeros((len(indptr) - 1, columns), dtype=bool)
    table[np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), index] = True
    return table


def test_tables_equal_brute_force(patches, tmp_path) -> None:
    build_graphs(patches, tmp_path / "graph.h5", SHAPE, 0.3)
    with (
        open_checked(patches, "millrace.patches/1") as source,
        open_checked(tmp_path / "graph.h5", SCHEMA) as file,
    ):
        assert file.attrs["patches_digest"] == source.attrs["digest"]
        assert tuple(file.attrs["latent_shape"]) == SHAPE
        assert file.attrs["radius"] == 0.3
        latent = latent_grid(SHAPE)
        np.testing.assert_array_equal(file["latent"], latent.astype(np.float32))
        names = [name for name in source if name.startswith("patch_")]
        assert len(names) == 4
        for name in names:
            unit = unit_coords(source[name]["coords"][()])
            stored = file[name]["unit_coords"]
            assert stored.dtype == np.float32
            np.testing.assert_allclose(stored, unit, atol=1e-7)
            near = ((latent[:, None] - unit) ** 2).sum(2) <= 0.3**2
            table = dense(file[name]["in/indptr"][()], file[name]["in/index"][()], len(unit))
            np.testing.assert_array_equal(table, near)
            n_core = len(source[name]["core_node"])
            table = dense(file[name]["out/indptr"][()], file[name]["out/index"][()], len(latent))
            np.testing.assert_array_equal(table, near.T[:n_core])


def test_latent_grid_is_in_ij_order() -> None:
    grid = latent_grid((2, 3, 4))
    assert grid.shape == (24, 3)
    np.testing.assert_allclose(grid[[0, 1, 4, 12, 23]][:, 2], [0, 1 / 3, 0, 0, 1])
    np.testing.assert_allclose(grid.reshape(2, 3, 4, 3)[1, 2, 3], 1)
    np.testing.assert_allclose(grid.reshape(2, 3, 4, 3)[1, 1, 0], [1, 0.5, 0])


def test_unit_coords_fill_the_cube_far_from_the_origin() -> None:
    coords = np.array([[334_600.0, 6_249_800.0, -3.0], [334_700.0, 6_249_900.0, -3.0]])
    np.testing.assert_allclose(unit_coords(coords), [[0, 0, 0], [1, 1, 0]])
    middle = unit_coords(np.vstack([coords, coords.mean(axis=0) + np.array([0.001, 0, 0])]))[2]
    np.testing.assert_allclose(middle, [0.50001, 0.5, 0], atol=1e-9)


def test_a_radius_that_misses_points_is_refused_and_the_one_named_works(patches, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"smallest radius that works .* is \d\.\d{4}$") as caught:
        build_graphs(patches, tmp_path / "graph.h5", SHAPE, 0.05)
    assert not (tmp_path / "graph.h5").exists()
    smallest = float(re.search(r"is (\d\.\d+)$", str(caught.value))[1])
    build_graphs(patches, tmp_path / "graph.h5", SHAPE, smallest)
    with open_checked(tmp_path / "graph.h5", SCHEMA) as file:
        for name in (name for name in file if name.startswith("patch_")):
            assert (np.diff(file[name]["out/indptr"][()]) > 0).all()
    with pytest.raises(ConfigError):
        build_graphs(patches, tmp_path / "graph.h5", SHAPE, smallest - 2e-4)


@pytest.mark.parametrize(
    ("shape", "radius"), [((6, 6), 0.3), ((6, 6, 1), 0.3), (SHAPE, 0.0), (SHAPE, float("nan"))]
)
def test_meaningless_parameters_are_refused(patches, tmp_path, shape, radius) -> None:
    with pytest.raises(ConfigError, match="expected"):
        build_graphs(patches, tmp_path / "graph.h5", shape, radius)
