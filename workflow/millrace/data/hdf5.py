"""HDF5 files that are either complete or absent, and whose damage is noticed.

Every dataset is chunked with a Fletcher-32 checksum; the v1.10 file format adds checksums to the
metadata, so that a flipped bit anywhere causes an error instead of a wrong number.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from millrace.errors import DataError, first_line
from millrace.files import atomic_write

CHUNK_BYTES = 1 << 20
"""Size of a chunk: large enough to be read fast, small enough for HDF5's cache when read in parts."""

_FORMAT = ("v110", "v110")


@contextlib.contextmanager
def create(path: Path) -> Iterator[h5py.File]:
    """Write an HDF5 file, which appears under its name only when it is complete and on the disk.

    Write datasets in whole chunks: they are not cached. Raises `OutputError` like `atomic_write`.
    """
    with atomic_write(Path(path)) as partial, _Output(partial, "w+b") as output:
        try:
            # Without a chunk cache a write fails where it is made, not when a dataset is collected.
            with h5py.File(output, "w", libver=_FORMAT, rdcc_nbytes=0) as file:
                yield file
                file.flush()
        finally:
            if output.error is not None:
                raise output.error from None


class _Output(io.FileIO):
    """File that raises and keeps its first write error and discards what is written afterwards.

    HDF5 cannot close a file that it cannot write: it tries again and again, ignores the errors where
    Python collects its objects, and crashes at exit.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view) and self.error is None:
            try:
                written += super().write(view[written:]) or 0
            except OSError as error:
                self.error = error
                raise
        return len(view)


def create_dataset(
    group: h5py.Group,
    name: str,
    data: ArrayLike | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: DTypeLike | None = None,
    chunks: tuple[int, ...] | None = None,
    packed: bool = False,
) -> h5py.Dataset:
    """Add a chunked dataset with checksums, from ``data`` or empty with ``shape`` and ``dtype``.

    By default a chunk holds rows of the first axis, about `CHUNK_BYTES` in all; if a single row is larger
    than that, give ``chunks``. With ``packed`` chunks are compressed without loss: bytes are shuffled,
    then gzip.
    """
    if data is not None:
        data = np.asarray(data, dtype=dtype)
        shape, dtype = data.shape, data.dtype
    if shape is None:
        raise TypeError("either data or shape is needed")
    if 0 in shape:  # HDF5 has no chunks without elements
        return group.create_dataset(name, shape, dtype)
    chunks = chunks or (rows_per_chunk(shape, np.dtype(dtype)), *shape[1:])
    packing = {"shuffle": True, "compression": "gzip", "compression_opts": 3} if packed else {}
    return group.create_dataset(name, shape, dtype, data, chunks=chunks, fletcher32=True, **packing)


def create_virtual(
    file: h5py.File,
    name: str,
    parts: Sequence[tuple[Path, tuple[int, ...], range]],
    dtype: DTypeLike,
    folder: Path,
) -> h5py.Dataset:
    """Add a dataset whose rows stay in those of the same name in other files, in the order of ``parts``.

    Each part is a file, the shape of its dataset, and which rows of it. They are named relative to
    ``folder``, in which this file will be, and `open_checked` refuses it where one of them is missing or
    has changed: HDF5 would read no values there.
    """
    total = sum(len(rows) for *_, rows in parts)
    used = [
        (os.path.relpath(path, folder), path, shape, rows)
        for path, shape, rows in parts
        if all(shape) and len(rows)
    ]
    if not used:
        return create_dataset(file, name, shape=(total, *parts[0][1][1:]), dtype=dtype)
    layout = h5py.VirtualLayout((total, *used[0][2][1:]), dtype)
    begin = 0
    for relative, _, shape, rows in used:
        source = h5py.VirtualSource(relative, name, shape, dtype)
        layout[begin : begin + len(rows)] = source[rows.start : rows.stop]
        begin += len(rows)
    sizes = dict(zip(file.attrs.get("parts", ()), file.attrs.get("part_sizes", ()), strict=True))
    sizes |= {relative: path.stat().st_size for relative, path, *_ in used}
    file.attrs["parts"], file.attrs["part_sizes"] = strings([*sizes]), np.array([*sizes.values()])
    file.attrs["part_names"] = strings([*file.attrs.get("part_names", ()), name])
    fill = np.nan if np.issubdtype(np.dtype(dtype), np.floating) else None
    return file.create_virtual_dataset(name, layout, fillvalue=fill)


def parts_of(path: Path) -> list[str]:
    """Files in which rows of a file are, relative to its folder, see `create_virtual`.

    Raises `DataError` if the file is missing or damaged.
    """
    with reading(path), h5py.File(path, "r") as file:
        return [str(name) for name in file.attrs.get("parts", ())]


def rows_per_chunk(shape: Sequence[int], dtype: DTypeLike) -> int:
    """Rows of an array of this shape in a chunk of at most `CHUNK_BYTES` (at least one)."""
    row = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    return max(1, min(shape[0], CHUNK_BYTES // max(1, row)))


def strings(values: Sequence[str]) -> np.ndarray:
    """Array of strings as the value of an attribute; it may be empty."""
    return np.array(list(values), dtype=h5py.string_dtype())


@contextlib.contextmanager
def open_checked(path: Path, schema: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading and check that its attribute ``schema`` is the expected one.

    Raises `DataError` if the file is missing, truncated, damaged (also when this shows only while it is
    read inside the ``with`` statement) or has another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; run the stage of the workflow that makes it")
    with reading(path), h5py.File(path, "r") as file:
        found: Any = file.attrs.get("schema")
        if found != schema:
            what = "no schema" if found is None else f"schema {found!r}"
            raise DataError(
                f"{path}: expected schema {schema!r}, found {what}; delete it and make it again"
            )
        _check_parts(path, file)
        yield file


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of HDF5 about a damaged file into a `DataError`, where the file stays open."""
    try:
        yield
    except (OSError, KeyError, RuntimeError) as error:
        message = str(error.args[0]) if error.args else ""
        # Errors of the HDF5 library, except those about a name that does not exist.
        if not message.startswith(("Unable to", "Can't")) or "doesn't exist" in message:
            raise
        raise DataError(
            f"{path}: truncated or damaged HDF5 ({message.splitlines()[0]}); delete it and make it again"
        ) from error


def _check_parts(path: Path, file: h5py.File) -> None:
    """Refuse a file whose rows are in files that are not there as they were, or cannot be opened."""
    sizes = dict(zip(file.attrs.get("parts", ()), file.attrs.get("part_sizes", ()), strict=True))
    read: dict[str, list[str]] = {relative: [] for relative in sizes}
    for name in file.attrs.get("part_names", ()):
        for source in file[name].virtual_sources():
            read[source.file_name].append(source.dset_name)
    for relative, size in sizes.items():
        part = path.parent / relative
        if not part.is_file() or part.stat().st_size != size:
            what = "is missing" if not part.is_file() else f"has {part.stat().st_size} bytes"
            raise DataError(
                f"{part}: {what}, but {path} reads its {size} bytes; make the samples again"
            )
        try:
            with h5py.File(part, "r") as opened:
                for name in read[relative]:
                    _ = opened[name].shape
        except (OSError, KeyError, RuntimeError) as error:
            raise DataError(
                f"{part}: truncated or damaged HDF5 ({first_line(error)}), which {path} reads; delete it "
                "and make the samples again"
            ) from error
