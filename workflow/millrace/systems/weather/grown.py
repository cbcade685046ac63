"""Files that have grown along time: whether the states that a part took of them are as they were.

Of what a part took, the description is compared, the times, and as of all raw files sizes: those of the
chunks in which it is stored.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import partial
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


def signature(path: Path, data: xr.Dataset, steps: Steps) -> dict[str, Any] | None:
    """What a part says of the steps that it took of a file; None: of this kind all is read again."""
    stored_in = None if isinstance(path, Address) else _stored(path, steps)
    if stored_in is None:
        return None
    content = hashlib.sha256()
    for axis in AXES:
        if axis in data.variables:
            content.update(np.ascontiguousarray(data[axis].values).tobytes())
    for name, (first, last) in sorted(steps.items()):
        one = data[name]
        times = data["time"].values if "time" in data.variables else np.zeros(0)
        content.update(np.ascontiguousarray(np.atleast_1d(times)[first : last + 1]).tobytes())
        sizes = {axis: size for axis, size in one.sizes.items() if axis != "time"}
        packed = {
            key: str(value)
            for key, value in sorted(one.encoding.items())
            if key not in ("source", "original_shape", "szip", "zstd", "bzip2", "blosc")
        }
        chunk = _steps_per_chunk(one)
        chunks = range(first // chunk, last // chunk + 1)
        at = one.dims.index("time") if "time" in one.dims else None
        told = (name, str(one.dtype), sizes, sorted(map(str, one.attrs.items())), packed)
        content.update(repr((told, stored_in(name, at, chunks, chunk))).encode())
    return {"steps": {name: [*span] for name, span in steps.items()}, "digest": content.hexdigest()}


def is_still(path: Path, told: Mapping[str, Any]) -> bool:
    """Whether what `signature` said of a file is still so."""
    try:
        for _, data in open_sources(path):
            steps = {name: (first, last) for name, (first, last) in told["steps"].items()}
            lengths = {name: data[name].sizes.get("time", 1) for name in steps if name in data}
            if len(lengths) == len(steps) and all(steps[n][1] < lengths[n] for n in steps):
                return signature(path, data, steps) == dict(told)
    except (DataError, OSError):
        pass  # jobs say what is wrong with it
    return False


def _steps_per_chunk(variable: xr.DataArray) -> int:
    chunks = variable.encoding.get("preferred_chunks") or {}
    return max(1, int(next((chunks[name] for name in TIME_NAMES if name in chunks), 1)))


def _stored(path: Path, steps: Steps) -> Any:
    """(variable, axis of time, chunks along it, their length) -> sizes of what is stored of them.

    None: it is not stored in chunks.
    """
    if is_store(path):
        return lambda name, at, chunks, _: _in_store(path / name, at, chunks)
    if path.suffix == ".csv" or not h5py.is_hdf5(path):
        return None
    with h5py.File(path, "r") as file:
        in_chunks = all(name in file and file[name].chunks is not None for name in steps)
    return partial(_in_hdf5, path) if in_chunks else None


def _in_store(folder: Path, at: int | None, chunks: range) -> list[tuple[str, int]]:
    found = []
    for one in folder.rglob("*"):
        name = one.relative_to(folder).as_posix()
        numbers = re.fullmatch(r"(?:c[/.])?(\d+(?:[/.]\d+)*)", name)
        if numbers and one.is_file():
            index = [int(n) for n in re.split("[/.]", numbers[1])]
            if at is None or at >= len(index) or index[at] in chunks:
                found.append((name, one.stat().st_size))
    return sorted(found)


def _in_hdf5(
    path: Path, name: str, at: int | None, chunks: range, length: int
) -> list[tuple[Any, ...]]:
    with h5py.File(path, "r") as file:
        stored = file[name]
        every = (stored.id.get_chunk_info(n) for n in range(stored.id.get_num_chunks()))
        return sorted(
            (*one.chunk_offset, one.size)
            for one in every
            if at is None or one.chunk_offset[at] // length in chunks
        )
