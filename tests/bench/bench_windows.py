"""Windows of a patch a second, against a DataLoader over windows that were cut before, on one CPU core.

Both give batches of 16 windows of the same patch in random order, normalised, in float32, with the same
values: past states, forcings with their masks, places, and the states to predict. They take turns.

loader    `torch.utils.data.DataLoader` over arrays of all windows in memory, many times the raw series
millrace  the series once, from which windows are cut when they are asked for
"""

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from rows import ROOT, Limits, Row, in_turns, run

sys.path.insert(0, str(ROOT / "tests"))
from conftest import write_samples
from torch.utils.data import DataLoader, TensorDataset

from millrace.data.shared import tensors_in
from millrace.processes import keep_freed_memory
from millrace.systems.groundwater.patch_dataset import PatchDataset
from millrace.systems.groundwater.settings import WindowConfig

GOAL, MEMORY = 1, 1.1
BATCH, POINTS, GHOSTS = 16, 1200, 300
SIZES = {"10-10": (10, 10, ()), "5-1": (5, 1, ()), "forcings": (3, 3, ("sea_level_forcing",))}


def measure(name: str, rounds: int) -> Iterator[Row]:
    """Passes over the training windows of a patch."""
    keep_freed_memory()
    torch.set_num_threads(1)
    steps_in, steps_out, forcings = SIZES[name]
    variables = ("head", "mass_concentration")
    config = WindowConfig(
        variables=variables, forcings=forcings, input_steps=steps_in, output_steps=steps_out
    )
    with tempfile.TemporaryDirectory() as folder:
        patches = Path(folder, "patches.h5")
        write_samples(patches, Path(folder, "graph.h5"), 400, ((POINTS, GHOSTS), (GHOSTS, 10)))
        with h5py.File(patches, "r+") as file:
            file["split"][:] = [[0, 300], [320, 350], [370, 400]]
        dataset = PatchDataset(patches, config=config)
        windows = int(dataset.groups("train")[0])
        whole = dataset.batch("train", 0, np.arange(windows))
    cut = [one.transpose(0, 1).contiguous() for one in (whole.x_NBC, whole.y_KBTV)]
    loader = DataLoader(TensorDataset(*cut), BATCH, shuffle=True)
    random = np.random.default_rng(0)

    def ours() -> None:
        for chosen in np.array_split(random.permutation(windows), windows // BATCH):
            dataset.batch("train", 0, chosen)

    def theirs() -> None:
        for _ in loader:
            pass

    repeated = {one.__name__: partial(_repeat, one, 5) for one in (ours, theirs)}
    times = in_turns(repeated, rounds)
    rate = {key: [5 * windows / s for s in seconds] for key, seconds in times.items()}
    moved = sum(2 * one.nbytes for one in cut)
    share = Limits.measured().seconds(moved=5 * moved) / float(np.median(times["ours"]))
    what = f"windows of {POINTS + GHOSTS:,} points, {steps_in} to {steps_out} steps"
    what += ", with a forcing" if forcings else ""
    peer = "DataLoader over cut windows"
    yield Row(what, "1/s", rate["ours"], peer, rate["theirs"], GOAL, larger=True, share=share)
    series = dataset.groups_in_memory[0]
    raw = 4 * (POINTS + GHOSTS) * 400 * (2 + 2 * len(forcings))
    held = [sum(one.nbytes for one in tensors_in(series)) / raw]
    yield Row(f"{what}: memory over the raw series", "x", held, goal=MEMORY)


def _repeat(work, times: int) -> None:
    for _ in range(times):
        work()


if __name__ == "__main__":
    run({f"windows-{name}": partial(measure, name) for name in SIZES}, __doc__)
