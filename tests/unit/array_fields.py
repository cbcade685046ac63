"""Small arrays as a plug-in would read them, and files made of them."""

import numpy as np

from millrace.data.arrays import ArrayDataset, extract_arrays
from millrace.data.split import SplitConfig
from millrace.systems.arrays import ArrayConfig, Samples

SPLIT = SplitConfig(train=0.6, validation=0.2)
PERIODS = SplitConfig(train=0.6, validation=0.2, gap=4)


def independent(n=40, grid=(5, 6), seed=0):
    """Two inputs, one of them the same in all cells, and two targets in units far from 1."""
    random = np.random.default_rng(seed)
    a, b = random.random((n, *grid)), random.random(n)
    along = 1 + np.arange(np.prod(grid)).reshape(grid) / 10
    return Samples(
        inputs={"a": (a.astype(np.float32), "m"), "b": (b, "Pa")},
        targets={
            "p": (1e-13 * (3 + a * along), "m2"),
            "q": (300 + b.reshape(-1, *[1] * len(grid)) * along, "K"),
        },
        coordinates={f"x{axis}": (np.arange(size) * 2.0, "km") for axis, size in enumerate(grid)},
    )


def series(n=60, cells=7):
    """A wave that a forcing drives, with times that are not equally far apart."""
    time, x = np.cumsum(np.linspace(1, 2, n)), np.arange(cells)
    state = np.sin(0.3 * time[:, None] - x) + 5
    forcing = np.cos(0.3 * time)[:, None] + 0 * x
    return Samples(
        inputs={"f": (forcing, "m")},
        targets={"u": (state, "m/s")},
        coordinates={"x": (x, "m")},
        time=(time, "d"),
    )


def write(directory, samples, split=None, name="samples.h5"):
    """Path of the file that is made of some samples; those with times are a series."""
    is_series = samples.time is not None
    split = split or (PERIODS if is_series else SPLIT)
    path = directory / name
    extract_arrays(directory, path, None, split, None, lambda *_: samples, is_series)
    return path


def opened(directory, samples, **config):
    """The dataset of some samples."""
    return ArrayDataset(write(directory, samples), ArrayConfig(**config))
