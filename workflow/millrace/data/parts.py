"""Extraction in parts: which units each part takes, and files of parts of a series of times."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from millrace.data.hdf5 import open_checked
from millrace.errors import DataError
from millrace.systems.base import Progress


def part_of(units: int, part: int, parts: int, together: int = 1) -> range:
    """Units of a part, which counts from 0.

    All parts but the last have the same number of them, a multiple of ``together``; the last ones may be
    empty.
    """
    length = -(-units // (parts * together)) * together
    return range(min(part * length, units), min((part + 1) * length, units))


def describe_part(file: h5py.File, schema: str, facts: Mapping[str, Any], times: range) -> None:
    """Write as attributes which times a part is of, and ``facts`` that are the same in all parts.

    Among them is the number of all ``times``.
    """
    text = json.dumps(facts, sort_keys=True)
    file.attrs.update(schema=schema, facts=text, first=times.start, count=len(times))


def open_parts(
    parts: Sequence[Path], schema: str, output: Path, progress: Progress | None = None
) -> Iterator[tuple[Path, h5py.File, dict[str, Any]]]:
    """Open the parts of ``output`` one after the other: path, content, and the facts of all.

    ``progress`` is called with (parts done, all). Raises `DataError` if a part is missing, damaged, or
    another than the one that follows.
    """
    facts: dict[str, Any] = {}
    times = 0
    for number, path in enumerate(parts):
        with open_checked(path, schema) as part:
            found = json.loads(part.attrs["facts"])
            if facts not in ({}, found):
                raise DataError(
                    f"{path}: not of the same raw files and settings as {parts[0]}; delete it and make it "
                    "again"
                )
            if part.attrs["first"] != times:
                raise DataError(
                    f"{path}: begins with time {part.attrs['first']}, expected time {times}; delete the "
                    "parts and make them again"
                )
            facts, times = found, times + int(part.attrs["count"])
            yield path, part, facts
        if progress is not None:
            progress(number + 1, len(parts))
    if not facts or times != facts["times"]:
        raise DataError(f"{output}: its parts do not hold all times; make all of them again")
