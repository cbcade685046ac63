"""Files that have grown along time: whether the states that a part took of them are as they were.

Of what a part took, the description is compared, the times, and as of all raw files sizes: those of the
chunks in which it is stored.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from millrace.errors import DataError
from millrace.input_files import Address
from millrace.systems.weather.source import AXES, TIME_NAMES, is_store, open_sources

Steps = Mapping[str, tuple[int, int]]
"""First and last step of variables, by the names in the file."""


Stored = Callable[[str], list[tuple[tuple[int, ...], int]]]
"""Variable -> places of its chunks, counted or by their first cells, and their sizes."""


def signature(path: Path, data: xr.Dataset, steps: Steps) -> dict[str, Any] | None:
    """What a part says of the steps that it took of a file; None: of this kind all is read again."""
    stored = None if isinstance(path, Address) else _stored(path, steps)
    return None if stored is None else _signature(data, steps, stored, is_store(path))


def are_still(path: Path, told: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether what `signature` said of a file to some parts is still so."""
    found: list[bool] = []
    try:
        [(_, data)] = open_sources(path)
        for one in told:
            steps = {name: (first, last) for name, (first, last) in one["steps"].items()}
            lengths = {name: data[name].sizes.get("time", 1) for name in steps if name in data}
            reach = all(last < lengths.get(name, 0) for name, (_, last) in steps.items())
            if not found:
                stored = _stored(path, steps)
            same = reach and stored is not None
            found.append(same and _signature(data, steps, stored, is_store(path)) == dict(one))
    except (DataError, OSError, ValueError):  # jobs say what is wrong with it
        found += [False] * (len(told) - len(found))
    return found


def _signature(data: xr.Dataset, steps: Steps, stored: Any, counted: bool) -> dict[str, Any]:
    content = hashlib.sha256()
    for axis in AXES:
        if axis in data.variables:
            content.update(np.ascontiguousarray(data[axis].values).tobytes())
    times = np.atleast_1d(data["time"].values) if "time" in data.variables else np.zeros(0)
    for name, (first, last) in sorted(steps.items()):
        one = data[name]
        content.update(np.ascontiguousarray(times[first : last + 1]).tobytes())
        sizes = {axis: size for axis, size in one.sizes.items() if axis != "time"}
        packed = {
            key: str(value)
            for key, value in sorted(one.encoding.items())
            if key not in ("source", "original_shape", "szip", "zstd", "bzip2", "blosc")
        }
        at, length = _chunks_along_time(one)
        chunks = range(first // length, last // length + 1)
        of_steps = [
            (place, size)
            for place, size in stored(name)
            if at is None or place[at] // (1 if counted else length) in chunks
        ]
        told = (name, str(one.dtype), sizes, sorted(map(str, one.attrs.items())), packed)
        content.update(repr((told, of_steps)).encode())
    return {"steps": {name: [*span] for name, span in steps.items()}, "digest": content.hexdigest()}


def _chunks_along_time(variable: xr.DataArray) -> tuple[int | None, int]:
    """Which axis in the file is that of time, and how many steps are stored together, or in a shard."""
    chunks = variable.encoding.get("preferred_chunks") or {}
    axes = [*chunks]
    at = next((axes.index(name) for name in TIME_NAMES if name in axes), None)
    if at is None:
        return None, 1
    shards = variable.encoding.get("shards")
    return at, max(1, int(shards[at] if shards else chunks[axes[at]]))


def _stored(path: Path, steps: Steps) -> Stored | None:
    """What is stored of variables of a file, which is looked up once; None: not in chunks."""
    if is_store(path):
        return cache(partial(_in_store, path))
    if path.suffix == ".csv" or not h5py.is_hdf5(path):
        return None
    with h5py.File(path, "r") as file:
        in_chunks = all(name in file and file[name].chunks is not None for name in steps)
    return cache(partial(_in_hdf5, path)) if in_chunks else None


def _in_store(path: Path, name: str) -> list[tuple[tuple[int, ...], int]]:
    found = []
    for one in (path / name).rglob("*"):
        key = one.relative_to(path / name).as_posix()
        numbers = re.fullmatch(r"(?:c[/.])?(\d+(?:[/.]\d+)*)", key)
        if numbers and one.is_file():
            place = tuple(int(n) for n in re.split("[/.]", numbers[1]))
            found.append((place, one.stat().st_size))
    return sorted(found)


def _in_hdf5(path: Path, name: str) -> list[tuple[tuple[int, ...], int]]:
    found: list[tuple[tuple[int, ...], int]] = []
    with h5py.File(path, "r") as file:
        file[name].id.chunk_iter(lambda one: found.append((tuple(one.chunk_offset), one.size)))
    return sorted(found)
