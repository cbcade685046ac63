"""Whether files of arrays declare what they can hold, before their libraries take memory for it.

A few bytes can declare an axis of 10^12 values or a chunk of gigabytes, which the libraries would fill with
zeros; or ask them to read other files, or to run what a file holds.
"""

import functools
import math
from pathlib import Path
from typing import Any

import h5py

from millrace.errors import DataError, first_line
from millrace.input_files import SMALL, check_memory, in_words

_MOST = 100_000
"""Times its size that a file may declare: fields of one value pack to that."""
_DEEPEST = 32  # groups within each other
DESCRIPTION = 1 << 16
"""Bytes that an array may take besides its values."""
MOST_OBJECTS = 100_000
_MOST_CHUNKS = 1_000


def check_hdf5(path: Path) -> None:
    """Refuse a file of HDF5, such as NetCDF-4, that declares what it cannot hold; others are not looked at.

    Also one whose values lie in other files, or whose groups are in circles. Raises `DataError`, and
    OSError if the file is damaged.
    """
    status = path.stat()
    if not h5py.is_hdf5(path):
        return
    try:
        _check_hdf5(path, status.st_size, status.st_mtime_ns)
    except (KeyError, RuntimeError, ValueError) as error:  # those of h5py
        raise OSError(first_line(error)) from error


@functools.lru_cache(maxsize=10_000)  # files of a run are opened several times
def _check_hdf5(path: Path, size: int, changed: int) -> None:
    del changed
    most = SMALL + _MOST * size
    with h5py.File(path, "r") as file:
        groups: list[tuple[Any, int]] = [(file, 0)]
        count = 0
        while groups:
            group, depth = groups.pop()
            # A group of two names can be within itself.
            if depth > _DEEPEST or h5py.h5o.get_info(group.id).rc > 1:
                raise DataError(
                    f"{path}: a group has two names, or is more than {_DEEPEST} deep; expected a tree of "
                    "groups, write it again"
                )
            for key in group:
                count += 1
                if count > MOST_OBJECTS:
                    raise DataError(f"{path}: more than {MOST_OBJECTS:,} variables; write it again")
                link = group.get(key, getlink=True)
                inside = isinstance(link, h5py.SoftLink) and group.get(key, getclass=True)
                if not isinstance(link, h5py.HardLink) and inside is not h5py.Dataset:
                    where = getattr(link, "filename", "") or link.path
                    raise DataError(
                        f"{path}: {key!r} is a link to {where}; write it again with what is there"
                    )
                one = group[key]
                if isinstance(one, h5py.Group):
                    groups.append((one, depth + 1))
                elif isinstance(one, h5py.Dataset) and one.shape is not None:
                    if one.external or one.is_virtual:
                        files = one.external or [
                            [source.file_name] for source in one.virtual_sources()
                        ]
                        raise DataError(
                            f"{path}: the values of {key!r} lie in another file, {files[0][0]}; "
                            "write it again with its values"
                        )
                    bytes_each = one.id.get_type().get_size()
                    if math.prod(one.shape) * bytes_each > most:
                        raise DataError(
                            f"{path}: {key!r} is declared as {' x '.join(map(str, one.shape))} values, "
                            f"which the {size:,} bytes of the file do not hold; copy or write it again"
                        )
                    check_shape(path, key, one.shape, one.chunks, bytes_each)
                    if one.chunks:
                        _check_chunks(path, key, one, bytes_each)


def _check_chunks(path: Path, name: str, one: h5py.Dataset, bytes_each: int) -> None:
    """Refuse packed chunks that are larger than their values: they would unpack to far more."""
    chunks = math.prod(-(-n // m) for n, m in zip(one.shape, one.chunks, strict=True))
    if chunks <= _MOST_CHUNKS:  # of many the sizes take long to read
        most = 2 * chunks * math.prod(one.chunks) * bytes_each + DESCRIPTION
        if (stored := one.id.get_storage_size()) > most:
            raise DataError(
                f"{path}: {in_words(stored)} for {name!r}, but {in_words(most)} hold all values that are "
                "declared; copy it again"
            )


def check_shape(
    path: Path, name: str, shape: tuple[int, ...], chunks: tuple[int, ...] | None, size: int
) -> None:
    """Refuse an axis or a chunk that is larger than memory: both are read at once."""
    if len(shape) == 1:
        check_memory(path, shape[0] * size, f"{name!r} of shape {list(shape)}")
    if chunks:
        check_memory(path, math.prod(chunks) * size, f"a chunk {list(chunks)} of {name!r}")
