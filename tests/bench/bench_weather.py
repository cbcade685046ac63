"""Time of `weather.h5` of a Zarr store over that of reading the store whole once, by length of its chunks.

CPU time of this process, the least of some repetitions. Chunks of many states, as those of public stores
of coarse fields, are unpacked once each. What is no reading is measured apart: the least that a file of
samples takes, with its checksums and its digest.
"""

import hashlib
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from millrace.data import hdf5
from millrace.data.split import SplitConfig
from millrace.systems.weather.extract import extract_weather
from millrace.systems.weather.settings import WeatherConfig

STATES, LEVELS, ROWS, COLUMNS = 200, 10, 32, 64
LENGTHS = (1, 100)
GOAL = 1.5


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


def seconds(run: Callable[[], None], repetitions: int = 5) -> float:
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    warnings.simplefilter("ignore")
    split = SplitConfig(train=0.5, validation=0.25, gap=0)
    config, states = WeatherConfig(static=()), (STATES, 4 + 5 * LEVELS, ROWS, COLUMNS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_stores(folder)
        noise = np.random.default_rng(0).normal(size=states).astype(np.float32)
        least = seconds(lambda: write_states(folder / "least.h5", noise))
        print(
            f"{STATES} states, {noise.nbytes / 1e6:.0f} MB; to write and digest them {least:.2f} s"
        )
        for length, path in paths.items():
            whole = seconds(lambda path=path: read_whole(path))
            ours = seconds(lambda path=path: extract_weather(path, folder / "w.h5", config, split))
            print(
                f"chunks of {length:3}: read whole {whole:.2f} s, extract {ours:.2f} s, ratio "
                f"{ours / whole:.1f} (goal <= {GOAL}), over reading and that {ours / (whole + least):.1f}"
            )


if __name__ == "__main__":
    main()
