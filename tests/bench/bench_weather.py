"""Time of `weather.h5` of a Zarr store over that of reading the store whole once, by length of its chunks.

CPU time of this process; 69 channels, as those of ERA5 on 13 levels. Chunks of many states, as those of
public stores of coarse fields, are unpacked once each. What is no reading is measured apart: the least that
a file of samples takes, with its checksums and its digest. What statistics take is the difference of
training periods that are nearly all of the states and nearly none of them.
"""

import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr
from rows import Row, in_turns, run

from millrace.data import hdf5
from millrace.data.split import SplitConfig
from millrace.systems.weather.extract import extract_weather
from millrace.systems.weather.settings import WeatherConfig

STATES, LEVELS, ROWS, COLUMNS = 400, 13, 32, 64
LENGTHS = (1, 100)
GOAL, STATISTICS_GOAL = 1.5, 0.15
MOST, LEAST = 0.9, 0.05
"""Share of the states whose statistics are taken."""


def write_stores(folder: Path) -> dict[int, Path]:
    """The same states in chunks of each length; axes in the order of the stores of WeatherBench 2."""
    random = np.random.default_rng(0)
    step = np.arange(STATES) * np.timedelta64(6, "h")
    axes = {
        "time": np.datetime64("2020-01-01", "ns") + step,
        "level": np.linspace(100, 1000, LEVELS),
        "latitude": np.linspace(-87, 87, ROWS),
        "longitude": np.arange(COLUMNS) * 360 / COLUMNS,
    }
    plane, data = ("time", "longitude", "latitude"), xr.Dataset(coords=axes)
    for name in (*WeatherConfig().surface, *WeatherConfig().air):
        dims = plane if name in WeatherConfig().surface else ("time", "level", *plane[1:])
        shape = [data.sizes[axis] for axis in dims]
        data[name] = (dims, random.normal(280, 5, shape).astype(np.float32))
    paths = {}
    for length in LENGTHS:
        chunks = {n: {"chunks": (length, *v.shape[1:])} for n, v in data.data_vars.items()}
        paths[length] = folder / f"{length}.zarr"
        data.to_zarr(paths[length], encoding=chunks, zarr_format=2)
    return paths


def read_whole(path: Path) -> None:
    data = xr.open_zarr(path, chunks=None)
    for name in data.data_vars:
        data[name].values  # noqa: B018


def write_states(path: Path, states: np.ndarray) -> None:
    """What cannot be saved: the checked file and its digest."""
    with hdf5.create(path) as file:
        chunks = (1, *states.shape[1:])
        hdf5.create_dataset(file, "state", states, chunks=chunks)
    hashlib.sha256(states.data)


def measure(rounds: int) -> Iterator[Row]:
    """Extraction over reading, and over reading and writing what is checked."""
    warnings.simplefilter("ignore")
    most, least = (
        SplitConfig(train=share, validation=MOST + LEAST - share, gap=0) for share in (MOST, LEAST)
    )
    config, states = WeatherConfig(static=()), (STATES, 4 + 5 * LEVELS, ROWS, COLUMNS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = np.random.default_rng(0).normal(size=states).astype(np.float32)
        for length, path in write_stores(folder).items():
            times = in_turns(
                {
                    "least": partial(write_states, folder / "least.h5", noise),
                    "read": partial(read_whole, path),
                    "ours": partial(extract_weather, path, folder / "w.h5", config, most),
                    "bare": partial(extract_weather, path, folder / "w.h5", config, least),
                },
                rounds,
            )
            what = (
                f"weather.h5 of {STATES} states, Zarr in chunks of {length}, over reading it whole"
            )
            ratios = [a / b for a, b in zip(times["ours"], times["read"], strict=True)]
            yield Row(what, "x", ratios)
            pairs = zip(times["ours"], times["read"], times["least"], strict=True)
            shares = [a / (b + c) for a, b, c in pairs]
            yield Row(f"{what} and writing", "x", shares, goal=GOAL)
            counted = (MOST - LEAST) * noise.nbytes / 100e6
            # Rounds differ by more, in what reading and writing take: the shortest of each.
            cost = (min(times["ours"]) - min(times["bare"])) / counted
            what = f"statistics of 100 MB of states, Zarr in chunks of {length}"
            yield Row(what, "s", [cost], goal=STATISTICS_GOAL)


if __name__ == "__main__":
    run({"weather": measure}, __doc__)
