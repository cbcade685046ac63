"""Whether a Zarr store declares what it can hold, before its chunks are unpacked."""

import itertools
import math
from pathlib import Path

import zarr

from millrace.data.declared import DESCRIPTION, MOST_OBJECTS, check_shape
from millrace.errors import DataError, first_line
from millrace.input_files import check_file, in_words

_MOST_PARTS = 1_000


def check_zarr(path: Path) -> None:
    """Refuse a Zarr store that declares more than memory holds at once, or that would run what it holds.

    Raises `DataError`, also if its description is damaged.
    """
    try:
        group = zarr.open_group(path, mode="r")
        arrays = list(itertools.islice(group.arrays(), MOST_OBJECTS))
        for name, one in arrays:
            codecs = [*one.filters, *one.compressors]
            if any("pickle" in type(codec).__name__.lower() for codec in codecs):
                raise DataError(
                    f"{path}: {name!r} holds pickled objects, which would be run; write numbers"
                )
            size = getattr(one.dtype, "itemsize", 1)
            check_shape(path, name, one.shape, one.chunks, size)
            if one.ndim == 1 and one.dtype.kind in "biufMm":  # texts have no size
                most = 2 * math.prod(one.shards or one.chunks) * size + DESCRIPTION
                _check_parts(path / name, most)
    except DataError:
        raise
    except Exception as error:  # of many kinds
        raise DataError(
            f"{path}: not readable as Zarr ({first_line(error)}); copy it again"
        ) from error


def _check_parts(folder: Path, most: int) -> None:
    """Refuse a stored part of an axis that is larger than its values: it would unpack to far more."""
    for part in itertools.islice(folder.rglob("*"), _MOST_PARTS):  # of many it takes long
        check_file(part)
        if part.stat().st_size > most:
            raise DataError(
                f"{part}: {in_words(part.stat().st_size)}, but {in_words(most)} hold all values that are "
                "declared; copy it again"
            )
