"""Whether a file of classic NetCDF is whole: its library reads what is cut off as zeros."""

import struct
from pathlib import Path
from typing import BinaryIO

from millrace.errors import DataError
from millrace.input_files import check_file

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
"""Bytes of each type, by its number in the file."""

_MOST = 1_000_000  # numbers of a header; its library allows 8,192 variables


def check_whole(path: Path) -> None:
    """Raise `DataError` if a file of classic NetCDF is cut off or its header damaged.

    Other files are not looked at; raises OSError if a file cannot be read.
    """
    check_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic[:3] != b"CDF" or magic[3:] not in (b"\x01", b"\x02", b"\x05"):
            return
        try:
            end = _Header(file, magic[3], size).end()
        except (struct.error, KeyError, IndexError, OverflowError) as error:
            raise DataError(f"{path}: its header is damaged; transfer or make it again") from error
    if end > size:
        raise DataError(
            f"{path}: cut off, {end - size} bytes are missing; transfer or make it again"
        )


class _Header:
    """Numbers of the header, big-endian, in the order of the file."""

    def __init__(self, file: BinaryIO, version: int, size: int) -> None:
        self._file, self._bytes = file, size
        self._count = ">Q" if version == 5 else ">I"
        self._offset = ">I" if version == 1 else ">Q"
        self._numbers = 0

    def end(self) -> int:
        """Where the last value ends."""
        records = self._number(self._count)
        lengths = self._dimensions()
        self._attributes()
        end, record = self._file.tell(), 0
        of_record: list[tuple[int, int]] = []
        for _ in range(self._list()):
            self._name()
            shape = [lengths[self._number(self._count)] for _ in range(self._number(self._count))]
            self._attributes()
            size = _SIZES[self._number(">I")]
            self._number(self._count)  # as padded, which overflows
            begin = self._number(self._offset)
            for length in shape[1:]:
                size *= length
            if shape and shape[0] == 0:
                record += -(-size // 4) * 4
                of_record.append((begin, size))
            else:
                end = max(end, begin + size * (shape[0] if shape else 1))
        if len(of_record) == 1:  # records of a single variable have no padding
            record = of_record[0][1]
        streamed = 2**64 - 1 if self._count == ">Q" else 2**32 - 1
        if records not in (0, streamed):
            ends = [begin + (records - 1) * record + size for begin, size in of_record]
            end = max([end, *ends])
        return end

    def _number(self, kind: str) -> int:
        self._numbers += 1
        if self._numbers > _MOST:
            raise OverflowError
        found: int = struct.unpack(kind, self._file.read(struct.calcsize(kind)))[0]
        return found

    def _list(self) -> int:
        self._number(">I")  # what is listed
        return self._number(self._count)

    def _skip(self, size: int) -> None:
        if size > self._bytes:
            raise OverflowError
        self._file.seek(size + -size % 4, 1)

    def _name(self) -> None:
        self._skip(self._number(self._count))

    def _dimensions(self) -> list[int]:
        lengths = []
        for _ in range(self._list()):
            self._name()
            lengths.append(self._number(self._count))
        return lengths

    def _attributes(self) -> None:
        for _ in range(self._list()):
            self._name()
            size = _SIZES[self._number(">I")]
            self._skip(size * self._number(self._count))
