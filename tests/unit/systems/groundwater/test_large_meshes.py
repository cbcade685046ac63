"""What is made of a series holds neither all of its times nor, of many nodes, more than a few of them."""

import tracemalloc

import numpy as np
import pytest

from millrace.data.hdf5 import create, create_dataset, strings
from millrace.systems.groundwater.patches import extract_patches
from millrace.systems.groundwater.planes import extract_planes
from millrace.systems.groundwater.settings import PatchConfig, PlaneConfig

STEPS, PER_SLICE, SLICES = 160, 5_000, 4
NODES = PER_SLICE * SLICES
SLAB = 1 << 20


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    random = np.random.default_rng(0)
    plan = random.uniform(0, 1000, (PER_SLICE, 2))
    z = -3.0 * np.repeat(np.arange(SLICES), PER_SLICE)
    coords = np.column_stack([np.tile(plan, (SLICES, 1)), z])
    path = tmp_path_factory.mktemp("large") / "series.h5"
    with create(path) as file:
        create_dataset(file, "time", np.arange(STEPS, dtype=np.float64))
        create_dataset(file, "split", np.array([[0, 100], [102, 130], [132, STEPS]]))
        create_dataset(file, "node", np.arange(NODES))
        create_dataset(file, "slice", np.repeat(np.arange(SLICES), PER_SLICE))
        create_dataset(file, "coords", coords)
        create_dataset(file, "stats/obs_mean", np.zeros(2))
        for name, dtype in (
            ("obs", np.float32),
            ("forcing", np.float32),
            ("forcing_mask", np.uint8),
        ):
            shape, chunks = (STEPS, NODES, 2), (1, NODES, 2)
            made = create_dataset(file, name, shape=shape, dtype=dtype, chunks=chunks)
            made.attrs["variables"] = strings(["head", "salt"])
            for step in range(STEPS):
                made[step] = np.column_stack([coords[:, 0] % 2, coords[:, 1] + step])
        file["obs"].attrs["variables"] = strings(["head", "mass_concentration"])
        file["obs"].attrs["units"] = strings(["m", "mg/L"])
        file["forcing"].attrs["variables"] = strings(["head_bc", "mass_concentration_bc"])
        file.attrs.update(schema="millrace.series/1", digest="source")
    return path


def peak(job):
    """Bytes of arrays that are held at once."""
    tracemalloc.start()
    try:
        job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_patches_are_cut_from_some_times_at_a_time(series, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("millrace.systems.groundwater.patches.SLAB_BYTES", SLAB)
    config = PatchConfig(slice_groups=2, clusters=20)  # a chunk of a patch could hold all times
    held = peak(lambda: extract_patches(series, tmp_path / "patches.h5", config))
    assert held < SLAB + 500 * NODES < STEPS * NODES * 8 / 2


def test_planes_are_cut_from_some_times_at_a_time(series, tmp_path, monkeypatch) -> None:
    """Also where the shore and the boundary are sought."""
    monkeypatch.setattr("millrace.systems.groundwater.planes.SLAB_BYTES", SLAB)
    config = PlaneConfig(count=1, shape=(8, 6))
    held = peak(lambda: extract_planes(series, tmp_path / "planes.h5", config))
    assert held < SLAB + 300 * NODES < STEPS * NODES * 8 / 2
