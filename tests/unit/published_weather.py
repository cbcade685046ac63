"""Weights and weather made of random numbers, for the published program of Aurora and for ours.

What the published program forecasts from them is in `tests/fixtures/aurora`.
"""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / "fixtures/aurora"
# Tokens at the three resolutions: 10 x 18, 5 x 9 and 3 x 5, which windows do not divide.
ROWS, COLUMNS, PATCH = 40, 72, 4
NETWORK = {
    "embed_dim": 16,
    "encoder_depths": (2, 2, 1),
    "decoder_depths": (1, 2, 2),
    "encoder_heads": (2, 4, 4),
    "decoder_heads": (4, 4, 2),
    "perceiver_heads": 2,
    "window": (2, 4, 4),
    "patch_size": PATCH,
}
LATITUDE = np.linspace(88, -88, ROWS)
LONGITUDE = np.arange(COLUMNS) * 360.0 / COLUMNS
TIMES = (datetime(2020, 2, 29, 12, tzinfo=UTC), datetime(2021, 7, 1, 18, tzinfo=UTC))
CELLS = np.s_[..., 1::7, 2::9]
"""Cells of the forecasts that are kept."""


@dataclass(frozen=True)
class Case:
    """What is forecast, and with which kind of network."""

    surface: tuple[str, ...] = ("2t", "10u", "10v", "msl")
    static: tuple[str, ...] = ("lsm", "z", "slt")
    air: tuple[str, ...] = ("z", "u", "v", "t", "q")
    levels: tuple[int, ...] = (250, 500, 850, 1000)
    stabilised: bool = False
    lora: bool = False
    still: bool = False
    """The two given states are the same."""

    @property
    def kind(self) -> str:
        """Name of the weights."""
        return f"{'stabilised' if self.stabilised else 'plain'}{'_lora' if self.lora else ''}"

    @property
    def channels(self) -> list[str]:
        """Surface variables, then those of the air level by level."""
        return [*self.surface, *(f"{name}_{level}" for name in self.air for level in self.levels)]


CASES = {
    "plain": Case(),
    "lora": Case(stabilised=True, lora=True),
    "levels": Case(levels=(100, 300, 700)),
    "few": Case(surface=("msl", "2t"), static=("z", "lsm"), air=("t", "z")),
    "still": Case(still=True),
}


def shapes(kind):
    """Shape of each weight of the published program."""
    return json.loads((FOLDER / "shapes.json").read_text())[kind]


def weights(shapes_by_name, seed=0):
    """Random weights of such shapes, float32; those of an output are about as large as its inputs."""
    made = {}
    for number, (name, shape) in enumerate(sorted(shapes_by_name.items())):
        noise = np.random.default_rng([seed, number]).standard_normal(shape)
        if len(shape) > 1 and "latents" not in name:
            noise /= np.sqrt(np.prod(shape[1:]))
        elif name.endswith(".weight"):
            noise = 1 + 0.1 * noise
        else:
            noise *= 0.1
        made[name] = noise.astype(np.float32)
    return made


def states(case):
    """States of each channel and static fields in units of their statistics, [B, T, C, I, J], [F, I, J]."""
    every = [*Case().channels, *(f"{n}_{level}" for n in Case().air for level in (100, 300, 700))]
    every += [name for name in case.channels if name not in every]

    def field(*key):
        return np.random.default_rng([1, *key]).standard_normal((ROWS, COLUMNS))

    of = {
        name: [[field(b, t, n) for t in range(2)] for b in range(len(TIMES))]
        for n, name in enumerate(every)
    }
    state = np.stack([of[name] for name in case.channels], axis=2)
    if case.still:
        state[:, 0] = state[:, 1]
    return state, np.stack([field(9, Case().static.index(name)) for name in case.static])


def expected(case):
    """Statistics and forecast of the published program: location and scale [C], and [B, C, ...]."""
    with np.load(FOLDER / "forecasts.npz") as file:
        return tuple(file[f"{case}_{name}"] for name in ("location", "scale", "forecast"))


def root_areas():
    """Of all patches, as the processor rounded them that made the forecasts, float32[N]."""
    with np.load(FOLDER / "forecasts.npz") as file:
        return file["root_area"]


def static_statistics():
    """Location and scale of `Case.static` in the published program."""
    with np.load(FOLDER / "forecasts.npz") as file:
        return file["static"]


def changed(case, **changes):
    """Another case."""
    return replace(case, **changes)
