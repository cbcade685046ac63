"""Checksums, and JSON that says when it is damaged: after a flip of a bit it may be valid all the same.

A record carries its own checksum under ``seal``. Records without one, of earlier versions, are taken as
they are.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from millrace.errors import DataError
from millrace.files import write_json
from millrace.input_files import check_file

_SEAL, _CHUNK = "seal", 2**20


def seal(record: Mapping[str, Any]) -> int:
    """Return the CRC-32 of a record as JSON with sorted keys; an entry ``seal`` does not count."""
    content = {key: value for key, value in record.items() if key != _SEAL}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its seal."""
    # Tuples, and keys that are no texts, are sealed as what they will be read as.
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain | {_SEAL: seal(plain)}


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record and its seal; errors like `millrace.files.write_json`."""
    write_json(path, sealed(record))


def read_sealed(path: Path, what: str, missing: str, remedy: str) -> dict[str, Any]:
    """Read a record that `write_sealed` or an earlier version wrote, without its seal.

    ``what`` is what the file should be ("a receipt"), ``missing`` and ``remedy`` what to do if there is
    none and if it is damaged.

    Raises
    ------
    DataError
        There is no such file, it cannot be read, is no such record, or is not the one that was sealed.
    """
    check_file(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected {what}; {missing}") from None
    except OSError as error:
        raise DataError(f"{path}: {what} cannot be read ({error.strerror}); {remedy}") from None
    record = _unsealed(content)
    if record is None:
        raise DataError(f"{path}: damaged, it is not {what} as it was written; {remedy}")
    return record


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over the intact records of a file with one on each line; nothing if there is no such file.

    A line that a kill cut short, or that is damaged, is left out.
    """
    with suppress(OSError, DataError):
        check_file(path)
        for line in path.read_bytes().splitlines():
            record = _unsealed(line)
            if record is not None:
                yield record


def damaged_lines(path: Path) -> list[int]:
    """Return the numbers of the lines that `read_lines` leaves out, but for a last one that is cut short.

    Raises `DataError` if the file cannot be read.
    """
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return [number for number, line in enumerate(lines, 1) if _unsealed(line) is None]


def _unsealed(content: bytes) -> dict[str, Any] | None:
    """Return what was sealed; None: it is no object, or damaged."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    return record if record.pop(_SEAL, seal(record)) == seal(record) else None
