"""A small directory in the layout of the FEFLOW exports, to be damaged at will."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

FIELD_HEADER = "node,ts,time (d),X,Y,Z,slice,mass_concentration,pressure,head"
FORCING_HEADER = "node,mass_concentration_bc,head_bc,recharge_forcing,sea_level_forcing"


@dataclass(frozen=True)
class Aquifer:
    """Values of a directory, as they should be read."""

    base: Path
    time: np.ndarray
    coords: np.ndarray
    slices: np.ndarray
    obs: np.ndarray
    """float64[T, N, 3]: mass_concentration, pressure, head."""
    forcing: np.ndarray
    """float64[T, N, 4], NaN where there is none."""


def write_aquifer_csv(
    base: Path, *, steps: int = 12, slices: int = 4, per_slice: int = 30, seed: int = 0
) -> Aquifer:
    random = np.random.default_rng(seed)
    number = np.repeat(np.arange(1, slices + 1), per_slice)
    plan = random.uniform(0, 100, (per_slice, 2)) + np.array([334_600, 6_249_800])
    surface = random.uniform(0, 2, per_slice)
    z = np.concatenate([surface - 3 * layer for layer in range(slices)])
    coords = np.column_stack([np.tile(plan, (slices, 1)), z]).round(3)
    n = len(coords)
    time = np.cumsum(random.uniform(0.3, 0.6, steps)).round(4)
    head = (0.5 + 0.1 * random.standard_normal((steps, n))).round(6)
    salt = (2_000 * random.standard_normal((steps, n)) + 3_000).round(3)
    pressure = (9.8046 * (head - coords[:, 2])).round(5)
    obs = np.stack([salt, pressure, head], axis=2)
    forcing = random.standard_normal((steps, n, 4)).round(5)
    forcing[:, np.arange(n) % 5 != 0, :2] = np.nan
    forcing[:, number != 1, 2] = np.nan
    forcing[:, np.arange(n) % 7 != 0, 3] = np.nan
    for folder in ("all", "forcings_corrected_all"):
        (base / folder).mkdir(parents=True)
    for step in range(steps):
        rows = [FIELD_HEADER]
        for i in range(n):
            place = ",".join(map(repr, coords[i].tolist()))
            values = ",".join(map(repr, obs[step, i].tolist()))
            rows.append(f"{i + 1},{step},{time[step]},{place},{number[i]},{values}")
        (base / "all" / f"{step:04d}.csv").write_text("\n".join(rows) + "\n")
        rows = [FORCING_HEADER]
        for i in range(n):
            cells = ["" if np.isnan(v) else repr(v) for v in forcing[step, i].tolist()]
            rows.append(f"{i + 1}," + ",".join(cells))
        (base / "forcings_corrected_all" / f"{step:04d}.csv").write_text("\n".join(rows) + "\n")
    return Aquifer(base, time, coords, number, obs, forcing)


@pytest.fixture
def aquifer(tmp_path: Path) -> Aquifer:
    return write_aquifer_csv(tmp_path / "raw")


@pytest.fixture
def write_aquifer() -> Callable[..., Aquifer]:
    return write_aquifer_csv
