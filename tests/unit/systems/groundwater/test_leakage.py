"""Nothing of validation and test data reaches what is trained on."""

import dataclasses

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from millrace.data.split import SplitConfig
from millrace.systems.groundwater.graphs import build_graphs
from millrace.systems.groundwater.patch_dataset import PatchDataset
from millrace.systems.groundwater.patches import extract_patches
from millrace.systems.groundwater.plane_dataset import PlaneDataset
from millrace.systems.groundwater.planes import extract_planes
from millrace.systems.groundwater.series import preprocess
from millrace.systems.groundwater.settings import (
    PatchConfig,
    PlaneConfig,
    PlaneWindowConfig,
    WindowConfig,
)

SPLIT = SplitConfig(train=0.5, validation=0.2, gap=4)
TRAIN = 11  # of 30 steps, less two gaps


@pytest.fixture
def datasets(write_aquifer, tmp_path):
    """Samples of patches and planes before and after all later states and forcings were changed."""
    aquifer = write_aquifer(tmp_path / "raw", steps=30)
    made = {}
    for name in ("before", "after"):
        if name == "after":
            for path in aquifer.base.rglob("*.csv"):
                if int(path.stem) >= TRAIN:
                    table = pd.read_csv(path)
                    columns = [
                        c for c in table if c not in ("node", "ts", "time (d)", *"XYZ", "slice")
                    ]
                    table[columns] = 3 * table[columns] + 1
                    table.to_csv(path, index=False)
        folder = tmp_path / name
        folder.mkdir()
        preprocess(
            aquifer.base,
            folder / "series.h5",
            variables=("mass_concentration", "head"),
            forcings=None,
            split=SPLIT,
        )
        extract_patches(folder / "series.h5", folder / "patches.h5", PatchConfig(clusters=2))
        build_graphs(folder / "patches.h5", folder / "graph.h5", (4, 4, 3), 0.6)
        plane = PlaneConfig(count=1, shape=(8, 8))
        extract_planes(folder / "series.h5", folder / "planes.h5", plane)
        window = WindowConfig(
            variables=("head",), forcings=("head_bc",), input_steps=2, output_steps=1
        )
        steps = PlaneWindowConfig(input_steps=2, output_steps=2, stride=1, radius=0.6)
        made[name] = {
            "patches": PatchDataset(folder / "patches.h5", folder / "graph.h5", config=window),
            "planes": PlaneDataset(folder / "planes.h5", steps),
        }
    return made


def tensors(part):
    """All tensors of a batch, also those of its parts."""
    if isinstance(part, torch.Tensor):
        yield part
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from tensors(getattr(part, field.name))
    elif isinstance(part, list | tuple):
        for one in part:
            yield from tensors(one)


@pytest.mark.parametrize("kind", ["patches", "planes"])
def test_later_data_change_no_training_sample_and_no_statistic(datasets, kind) -> None:
    before, after = (datasets[name][kind] for name in ("before", "after"))
    assert before.digest != after.digest
    assert before.normalisation.to_json() == after.normalisation.to_json()
    windows = np.arange(len(before.starts("train")))
    assert len(windows) > 2
    for group in range(len(before.core_nodes)):
        one, other = (dataset.batch("train", group, windows) for dataset in (before, after))
        pairs = list(zip(tensors(one), tensors(other), strict=True))
        assert len(pairs) > 4
        assert all(torch.equal(a, b) for a, b in pairs)
    changed = [dataset.batch("test", 0, np.arange(2)).y_KBTV for dataset in (before, after)]
    assert not torch.equal(*changed)


def test_the_training_period_is_as_long_as_this_test_believes(datasets, tmp_path) -> None:
    with h5py.File(tmp_path / "before" / "series.h5") as file:
        assert file["split"][0].tolist() == [0, TRAIN]
