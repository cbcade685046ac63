"""HDF5 files that are either whole or not there, and whose damage is noticed.

Every dataset is chunked with a Fletcher-32 checksum; the v1.10 file format adds checksums to the
metadata, so that a flipped bit anywhere is an error instead of a wrong number.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from millrace.errors import DataError
from millrace.files import atomic_write

CHUNK_BYTES = 1 << 20
"""Size of a chunk: large enough to be read fast, small enough for HDF5's cache when read in parts."""

_FORMAT = ("v110", "v110")


@contextlib.contextmanager
def create(path: Path) -> Iterator[h5py.File]:
    """Write an HDF5 file that appears under its name only once it is complete and on the disk.

    Datasets are best written in whole chunks: they are not cached.

    Raises
    ------
    OutputError
        No space, quota exceeded, or no permission to write.
    """
    with atomic_write(Path(path)) as partial, _Output(partial, "w+b") as output:
        try:
            # Without a chunk cache a write fails where it is made, not when a dataset is collected.
            with h5py.File(output, "w", libver=_FORMAT, rdcc_nbytes=0) as file:
                yield file
                file.flush()
        except Exception:
            if output.error is not None:
                raise output.error from None
            raise
        if output.error is not None:
            raise output.error


class _Output(io.FileIO):
    """File whose first write error is raised and kept; what follows is swallowed.

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
) -> h5py.Dataset:
    """Add a chunked, checksummed dataset, from ``data`` or to be filled.

    Chunks default to blocks along the first axis of about `CHUNK_BYTES`; an axis longer than that
    needs explicit ones.
    """
    array = None if data is None else np.asarray(data, dtype=dtype)
    shape = array.shape if array is not None else shape
    dtype = np.dtype(array.dtype if array is not None else dtype)
    if shape is None:
        raise TypeError("either data or shape is needed")
    if 0 in shape:  # HDF5 knows no chunks without elements
        return group.create_dataset(name, shape, dtype)
    if chunks is None:
        chunks = (rows_per_chunk(shape, dtype), *shape[1:])
    return group.create_dataset(name, shape, dtype, array, chunks=chunks, fletcher32=True)


def rows_per_chunk(shape: Sequence[int], dtype: DTypeLike) -> int:
    """Rows of an array of this shape that make a chunk of at most `CHUNK_BYTES` (at least one)."""
    row = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    return max(1, min(shape[0], CHUNK_BYTES // max(1, row)))


def strings(values: Sequence[str]) -> np.ndarray:
    """Attribute value for a list of names, which may be empty."""
    return np.array(list(values), dtype=h5py.string_dtype())


@contextlib.contextmanager
def open_checked(path: Path, schema: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading and check what it is.

    Raises
    ------
    DataError
        The file is missing, truncated, damaged (also when that shows only while it is read inside the
        ``with`` block) or of another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; run the stage of the workflow that makes it")
    try:
        with h5py.File(path, "r") as file:
            _check_schema(file, path, schema)
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        if not _is_damage(error):
            raise
        reason = str(error.args[0]).splitlines()[0]
        raise DataError(
            f"{path}: truncated or damaged HDF5 ({reason}); delete it and make it again"
        ) from error


def _is_damage(error: OSError | KeyError | RuntimeError) -> bool:
    """Whether an error comes from the HDF5 library, and not of a name that is not there."""
    message = str(error.args[0]) if error.args else ""
    from_library = message.startswith(("Unable to", "Can't"))
    return from_library and "doesn't exist" not in message


def _check_schema(file: h5py.File, path: Path, schema: str) -> None:
    found: Any = file.attrs.get("schema")
    if found != schema:
        what = "no schema" if found is None else f"schema {found!r}"
        raise DataError(
            f"{path}: expected schema {schema!r}, found {what}; delete it and make it again"
        )
