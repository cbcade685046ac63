"""Blocks come from the parents in the files, whatever the numbering; means are conserved."""

import json
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest

from millrace.data.split import SplitConfig
from millrace.errors import ConfigError, DataError
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.nesting import block_means, neighbours_above, nested_order
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.systems.downscaling.simulator.icosphere import Icosphere

SPLIT = SplitConfig(train=0.5, validation=0.25, gap=1)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("blocks") / "raw"
    write_climate(ClimateConfig(level=2, steps=14, steps_per_file=5), path)
    return path


@pytest.fixture(scope="module")
def blocks(raw, tmp_path_factory):
    path = tmp_path_factory.mktemp("blocks") / "blocks.h5"
    extract_blocks(raw, path, BlockConfig(levels=2), SPLIT)
    with h5py.File(path) as file:
        yield file


def test_fields_are_those_of_the_files_and_means_theirs(raw, blocks):
    with netCDF4.Dataset(raw / "output/tas_0001.nc") as file:
        expected = file["tas"][2, 0]
    cell = blocks["cell"][()] - 1
    assert np.array_equal(np.sort(cell), np.arange(1280))
    assert np.array_equal(blocks["fine"][7, :, 0], expected[cell])
    area = blocks["geometry/area"][()].reshape(80, 16)
    mean = (blocks["fine"][..., 0].reshape(14, 80, 16) * area).sum(2) / area.sum(1)
    assert blocks["coarse"][..., 0] == pytest.approx(mean, abs=2e-4)


def test_statistics_are_those_of_the_training_period(blocks):
    train = slice(*blocks["split"][0])
    fine, coarse = blocks["fine"][train], blocks["coarse"][train].astype(float)
    residual = fine - np.repeat(coarse, 16, axis=1)
    stats = blocks["stats"]
    assert stats["coarse_mean"][()] == pytest.approx(coarse.mean((0, 1)))
    assert stats["residual_std"][()] == pytest.approx(residual.std((0, 1)), rel=1e-4)
    assert stats["residual_mean"][()] == pytest.approx(residual.mean(0), abs=1e-3)


def test_what_was_read_is_counted_beside_the_samples(blocks):
    account = json.loads(Path(blocks.filename).with_name("samples.json").read_text())
    assert account["times"] == {
        "read": 14,
        "kept": 12,
        "left_out": {"in the gaps between the periods": 2},
    }
    assert account["files"]["left_out"] == {"grids that are not needed": 1}
    assert (account["cells"]["kept"], account["blocks"]["kept"]) == (1280, 80)


def test_neighbours_are_real_on_every_level(blocks):
    for level in range(3):
        grid = Icosphere.build(2 - level)
        found = np.sort(blocks[f"neighbours/{level}"][()], axis=1)
        assert np.array_equal(found, np.sort(grid.neighbours_N3, axis=1))


def test_numbering_of_the_file_does_not_matter():
    grid, coarse = Icosphere.build(2), Icosphere.build(1)
    rng = np.random.default_rng(0)
    new, new_coarse = rng.permutation(1280), rng.permutation(320)
    parents = [new_coarse[grid.parent_N[np.argsort(new)]]]
    parents.append(coarse.parent_N[np.argsort(new_coarse)])
    order, sizes = nested_order(parents, "grid.nc")
    assert sizes == [1280, 320, 80]
    original = np.argsort(new)[order]  # cells by their number before the shuffle
    for level in (1, 2):
        ancestor = original // 4**level
        assert (ancestor.reshape(-1, 4**level) == ancestor[:: 4**level, None]).all()


def test_an_incomplete_cell_is_told():
    parent = Icosphere.build(1).parent_N
    with pytest.raises(DataError, match=r"grid\.nc: 1 cells 1 levels up have not 4 descendants"):
        nested_order([parent[:-1]], "grid.nc")


def test_parents_that_do_not_fit_the_neighbours_are_told():
    rng = np.random.default_rng(1)
    neighbours = rng.permutation(1280)[Icosphere.build(2).neighbours_N3]
    with pytest.raises(
        DataError, match=r"grid\.nc: parent_cell_index and neighbor_cell_index disagree"
    ):
        neighbours_above(neighbours, 1, "grid.nc")


def test_means_are_weighted_with_the_area():
    fine = np.array([1.0, 2.0, 3.0, 6.0]).reshape(1, 4, 1)
    assert block_means(fine, np.array([1.0, 1, 1, 3]), 1).item() == pytest.approx(4.0)


def test_memory_does_not_grow_with_the_steps(raw, tmp_path, monkeypatch, blocks):
    monkeypatch.setattr("millrace.systems.downscaling.blocks.SLAB_BYTES", 1)
    extract_blocks(raw, tmp_path / "b.h5", BlockConfig(levels=2), SPLIT)
    with h5py.File(tmp_path / "b.h5") as file:
        assert np.array_equal(file["fine"][()], blocks["fine"][()])
        assert file["stats/residual_std"][()] == pytest.approx(blocks["stats/residual_std"][()])
        assert file.attrs["digest"] == blocks.attrs["digest"]


def test_impossible_levels():
    with pytest.raises(ConfigError, match=r"blocks\.levels: expected a whole number from 1 to 8"):
        BlockConfig.parse({"levels": 0}, "blocks")
