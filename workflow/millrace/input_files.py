"""Files from outside: what is no file is refused, and what would take more memory than there is.

What a file declares, such as its unpacked size or the shape of an array, is compared with what its bytes
can hold and with the memory that is free, before memory is taken for it.
"""

import errno
import fnmatch
import gzip
import io
import os
import re
import resource
import stat
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import Any, BinaryIO

import psutil

from millrace.errors import DataError, first_line

LONGEST_LINE = 1 << 20
"""Bytes of a line of text: rows have some ten columns."""
MOST_COLUMNS = 10_000
SMALL = 64 << 20
"""Bytes that are taken without a question."""
MOST_UNPACKED = 100
"""Times its size that a packed file may unpack to: tables of numbers come to 30, deflate to 1,032."""

ADDRESS_SUFFIX = ".address"
"""Of a file that holds the address of what is elsewhere: rules have files as input."""
_ADDRESS = re.compile(r"(https?|s3|gs):/{1,2}[^/]")  # as a path it has one slash
_NOT_OURS = {"lost+found", ".snapshot", ".snapshots", ".zfs"}
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# What is kept of files that were read; the kernel gives it up when memory is needed.
_GIVEN_UP = ("inactive_file", "active_file", "slab_reclaimable")
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


def check_file(path: Path) -> None:
    """Refuse what is there and is no file, before it is opened: a pipe may be waited for without end.

    Links are followed. Raises `DataError` for a pipe, socket or device, and for a link that leads nowhere
    or back to itself. That it is a directory, or permission is missing, says who opens it.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
            ends = "is not there" if error.errno == errno.ENOENT else "leads back to itself"
            raise DataError(
                f"{path}: a link to {path.readlink()}, which {ends}; expected a file: mend or remove it"
            ) from None
        return
    if kind in _KINDS:
        raise DataError(f"{path}: {_KINDS[kind]}; expected a file: remove it, or copy its content")


class Address(PosixPath):
    """Address of files that are elsewhere, such as ``https://host/era5.zarr``, where code takes a path."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)


def is_address(source: str | Path) -> bool:
    """Whether a source is an address, ``http(s)://``, ``s3://`` or ``gs://``, and no directory."""
    return _ADDRESS.match(str(source)) is not None


def resolve_address(source: str | Path) -> Path:
    """Return the `Address` that a source is, or that stands in it if it is a file of addresses."""
    path = Path(source)
    if path.suffix == ADDRESS_SUFFIX and path.is_file():
        source = path.read_text().strip()
    return Address(source) if is_address(source) else path


def is_there(path: Path) -> bool:
    """Whether there is something of this name, a link that leads nowhere too: reading it will tell."""
    return os.path.lexists(path)


def files_below(directory: Path, pattern: str) -> list[Path]:
    """Files of a directory and all folders below it, by their names; links to folders are followed.

    Folders of file systems (`_NOT_OURS`) are left out. Raises `DataError` for something of such a name that
    is no file, see `check_file`, and for a folder that cannot be read.
    """
    found = []
    for folder, names in folders_below(directory):
        found += [folder / name for name in fnmatch.filter(names, pattern)]
    for path in found:
        check_file(path)
    return sorted(found)


def folders_below(directory: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all below it, each once, though links may lead to it again, with names of files."""
    seen = set()
    for folder, below, names in os.walk(directory, onerror=_cannot_read, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted(set(below) - _NOT_OURS)
        yield Path(folder), names


def _cannot_read(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); give permission to read it, or name a "
            "folder without it as source"
        )


def open_file(path: Path, longest_line: int | None = LONGEST_LINE) -> BinaryIO:
    """Open a file, ``.gz`` too, to read it piece by piece.

    Raises `DataError`, also while it is read, if it is no file, packed data are damaged or unpack to more
    than `MOST_UNPACKED` times their size, or a line is longer than ``longest_line``; OSError if it cannot
    be read.
    """
    return io.BufferedReader(_Reader(path, longest_line), 1 << 17)


def check_columns(path: Path, header: bytes | None = None) -> None:
    """Refuse a table with more columns than any has, by its first line: pandas is slow with them.

    The line is that of a file, or the first one of ``header``.
    """
    if header is None:
        with open_file(path) as file:
            header = file.read(LONGEST_LINE)
    line = re.split(rb"[\r\n]", header, maxsplit=1)[0]
    columns = 1 + max(line.count(separator) for separator in (b",", b";", b"\t"))
    if columns > MOST_COLUMNS:
        raise DataError(
            f"{path}: {columns:,} columns; expected a table of {MOST_COLUMNS:,} at most, with a row for "
            "each time or place"
        )


def check_unpacked(path: Path) -> None:
    """Refuse a ``.gz`` file that unpacks to too much, before what is slower than unpacking begins."""
    check_file(path)
    if path.suffix == ".gz":
        with open_file(path, longest_line=None) as file:
            while file.read(1 << 20):
                pass


def read_file(path: Path) -> bytes:
    """Content of a file, ``.gz`` too; errors like `open_file`, and `DataError` if memory is too small."""
    check_file(path)
    check_memory(path, path.stat().st_size)
    with open_file(path, longest_line=None) as file:
        return file.read()


class _Reader(io.RawIOBase):
    """Bytes of a file, unpacked."""

    def __init__(self, path: Path, longest_line: int | None) -> None:
        check_file(path)
        self._path, self._longest = path, longest_line
        self._file: Any = path.open("rb", buffering=0)
        self._most = None
        if path.suffix == ".gz":
            self._most = max(SMALL, MOST_UNPACKED * path.stat().st_size)
            self._packed, self._file = self._file, gzip.GzipFile(fileobj=self._file)
        self._total = self._line = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._file.read(len(buffer))
        except _DAMAGED as error:
            raise DataError(
                f"{self._path}: the gzip data ends or is damaged ({first_line(error)}); expected a "
                "complete .gz file, copy it again"
            ) from error
        buffer[: len(piece)] = piece
        self._total += len(piece)
        if self._most is not None and self._total > self._most:
            raise DataError(unpacks_to_more(self._path, self._most))
        if self._longest is not None:
            end = max(piece.rfind(b"\n"), piece.rfind(b"\r"))
            self._line = self._line + len(piece) if end < 0 else len(piece) - end - 1
            if self._line > self._longest:
                raise DataError(
                    f"{self._path}: a line of more than {in_words(self._longest)}; expected rows of a "
                    "table, each on a line of its own"
                )
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            if self._most is not None:
                self._packed.close()
        super().close()


def unpacks_to_more(path: Path, most: int) -> str:
    """Sentence about a packed file that unpacks to more than ``most`` bytes."""
    return (
        f"{path}: {in_words(path.stat().st_size)} that unpack to more than {in_words(most)}, as no table "
        "of numbers does; look at what is in it, and unpack it if it is right"
    )


def check_memory(path: Path, needed: float, what: str = "its content") -> None:
    """Raise `DataError` if ``what`` of a file takes more memory than is free, in bytes."""
    if needed > SMALL and needed > (free := free_memory()):
        raise DataError(
            f"{path}: {what} would take {in_words(needed)} of memory, and {in_words(free)} are free; if "
            "that is what it holds, divide it or give the job more memory"
        )


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take, by the machine, its control groups and ``ulimit -v``.

    Control groups, with which clusters limit jobs, are looked for below ``root``.
    """
    free = [psutil.virtual_memory().available, *_free_in_groups(root)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(free))


def _free_in_groups(root: Path) -> Iterator[int]:
    """Bytes that are left of the limits of this process' control groups, of versions 1 and 2."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            top = root / "sys/fs/cgroup" / controllers
            names, prefix = ("max", "current"), ""
            if controllers:
                names, prefix = ("limit_in_bytes", "usage_in_bytes"), "total_"
            group = top / name.lstrip("/")
            for one in [group, *group.parents][: len(group.relative_to(top).parts) + 1]:
                with suppress(OSError, ValueError, KeyError):
                    limit, used = (int((one / f"memory.{key}").read_text()) for key in names)
                    kept = dict(row.split() for row in (one / "memory.stat").open())
                    given_up = (int(kept.get(f"{prefix}{key}", 0)) for key in _GIVEN_UP)
                    yield limit - used + sum(given_up)


def in_words(size: float) -> str:
    """Bytes in a unit that suits them, such as ``3.1 MB``."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"
