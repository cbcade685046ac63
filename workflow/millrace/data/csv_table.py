"""Tables of numbers in CSV, read at full speed; an error names the exact character where it occurs.

The fast path is pandas' C parser with explicit types, followed by cheap checks. Only if one of them fails,
a slow pass over the text finds the place of the error.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from millrace.data.units import conversion
from millrace.errors import DataError, first_line, listed
from millrace.input_files import (
    LONGEST_LINE,
    MOST_UNPACKED,
    SMALL,
    check_columns,
    check_file,
    check_memory,
    free_memory,
    in_words,
    open_file,
    unpacks_to_more,
)

_BOM = b"\xef\xbb\xbf"
_BLANK = ("", "NaN", "nan", "NA")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_LINE_END = re.compile(rb"\r\n|\n|\r")
_WITH_UNIT = re.compile(r"(.+?)[ _]*[\[(]([^\[\]()]*)[\])]")
_LARGEST = float(np.finfo(np.float32).max)
_DIGITS = 9  # of a number: more do not change its single precision
_PER_CELL = 32  # bytes of memory while a table is parsed


@dataclass(frozen=True, eq=False)
class CsvTable:
    """Columns of numbers from a CSV file."""

    path: Path
    columns: dict[str, NDArray[np.float64]]
    """float64[rows] each; NaN for a blank cell where blanks are allowed."""
    digest: bytes
    """SHA-256 of the file as it is on the disk."""
    content: bytes
    """Text of the file, unpacked and without a byte order mark."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def complete(self) -> bool:
        """Whether the last line ends with a newline."""
        return self.content.endswith((b"\n", b"\r"))

    @property
    def ending(self) -> Literal["newline", "blank", "number", "other"]:
        """How the file ends: with a newline, or in a blank cell, a number, or a column that is not read."""
        if self.complete:
            return "newline"
        (_, header), *_, (_, line) = _lines(self.content)
        if _last_cell(header) not in self.columns:
            return "other"
        return "number" if _last_cell(line) else "blank"

    @property
    def may_be_cut(self) -> bool:
        """Whether the file ends without a newline in a number that may be the beginning of a longer one.

        A number is whole if it has as many decimals, and digits of the exponent, as all others of its
        column; or if it has nine digits and a decimal point, so that others would not change it.
        """
        if self.ending != "number":
            return False
        *cells, last = (
            _last_cell(line) for _, line in itertools.islice(_lines(self.content), 1, None)
        )
        own, others = _written(last), {_written(cell) for cell in cells if cell}
        if len(others) == 1 and len(cells) > 2:
            return others != {own} or own == (0, 0)
        mantissa, _, exponent = last.lower().lstrip("+-").partition("e")
        whole, _, decimals = mantissa.partition(".")
        if exponent or any(digits for _, digits in others):
            # Where others have an exponent, that of this one may be lost, but for numbers that have none.
            least = min((digits for _, digits in others if digits), default=2)
            if own[1] < least and (exponent or (len(whole) == 1 and whole != "0")):
                return True
        return not decimals or len((whole + decimals).lstrip("0")) < _DIGITS

    def location(self, row: int, column: str) -> str:
        """``file:line:column`` of the first character of a cell."""
        lines = _lines(self.content)
        field = _cells(next(lines)[1]).index(column)
        number, line = next(itertools.islice(lines, row, None))
        return f"{self.path}:{number}:{_cell_starts(line)[field]}"

    def end(self) -> str:
        """``file:line:column`` of the end of the file."""
        line, column = _place(self.content, len(self.content))
        return f"{self.path}:{line}:{column}"

    def error(self, row: int, column: str, message: str) -> DataError:
        """Make an error about a cell; ``row`` counts from 0 after the header."""
        return DataError(f"{self.location(row, column)}: {message}")


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    blanks: bool = False,
    units: Mapping[str, str] | None = None,
) -> CsvTable:
    """Read columns of a CSV file (``.csv`` or ``.csv.gz``; UTF-8, with or without BOM; any line end).

    Cells are separated by commas; with ``units``, which may be empty, also by semicolons or tabs, even with
    decimal commas, and a name in the header may be followed by its unit in brackets, which has to be that
    of ``units``.

    Other columns are ignored; with ``blanks`` a cell may be empty or NaN. Raises `DataError`, which names
    ``file:line:column`` and what was expected, if the file cannot be read or is no CSV, a column is
    missing, or a cell is not a number that single precision can hold; also if memory is too small.
    """
    check_file(path)
    try:
        check_memory(path, path.stat().st_size)
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}:1:1: cannot be read ({_reason(error)}); expected a readable CSV file"
        ) from error
    content = _unpack(path, raw).removeprefix(_BOM)
    _check_size(path, content)
    if units is not None:
        content = _plain(path, content, columns, units)
    try:
        values = _parse(content, columns, blanks)
    except (ValueError, csv.Error) as error:  # the errors of pandas are ValueErrors, too
        content = content.rstrip(b"\r\n") + b"\n" * content.endswith((b"\n", b"\r"))
        _diagnose(path, content, columns, blanks)
        values = _parse_leniently(path, content, columns, blanks, error)
    return CsvTable(path, values, hashlib.sha256(raw).digest(), content)


def read_header(
    path: Path, columns: Sequence[str] = (), units: Mapping[str, str] | None = None
) -> list[str]:
    """Names of the columns of a CSV file, read as by `read_table`; `DataError` if it cannot be read."""
    line = _beginning(path, 1 if units is None else 2)
    if units is not None:
        line = _plain(path, line, columns, units)
    line = line.splitlines()[0] if line else line
    return _header_cells(path, line.decode(errors="replace").rstrip("\r\n"))


def read_first(
    path: Path, columns: Sequence[str], rows: int, units: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """First rows of a CSV file with all columns; raises `DataError` if it cannot be read."""
    content = _beginning(path, rows + 1)
    check_columns(path, content)
    content = _plain(path, content, columns, units or {})
    try:
        return pd.read_csv(io.BytesIO(content))
    except ValueError as error:
        raise DataError(f"{path}:1:1: not a CSV table ({_reason(error)})") from error


def _beginning(path: Path, lines: int) -> bytes:
    try:
        with open_file(path) as file:
            return b"".join(itertools.islice(file, lines)).removeprefix(_BOM)
    except OSError as error:
        raise DataError(f"{path}:1:1: cannot be read ({_reason(error)})") from error


def _plain(path: Path, content: bytes, columns: Sequence[str], units: Mapping[str, str]) -> bytes:
    """Turn a table into one with commas between cells, decimal points, and names without units.

    Below the header each character stays where it is, so that places in errors are those in the file.
    """
    end = content.find(b"\n")
    end = end if end >= 0 else len(content)
    header, start, body = content[:end], content[end : end + 10_000], None
    separator = next((s for s in (b";", b"\t") if s in header and s in start), b",")
    if separator != b"," and header.count(separator) >= header.count(b","):
        body = content[end:]
        comma = body.find(b",")
        if comma >= 0 and b"." in body:
            line, column = _place(content, end + comma)
            raise DataError(
                f"{path}:{line}:{column}: both ',' and '.' in numbers of a file separated by "
                f"{separator.decode()!r}; expected one of them, as the decimal sign: save the file with "
                "decimal points and without separators of thousands"
            )
        body = body.replace(b",", b".").replace(separator, b",")
        header = header.replace(b",", b".").replace(separator, b",")
    text = header.decode(errors="replace")
    names = _cells(text.rstrip("\r")) if text.count('"') % 2 == 0 else []
    wanted = [name for name in columns if name not in names]
    renamed = {cell: name for name in wanted for cell in names if _means(path, cell, name, units)}
    if body is None and not renamed:
        return content  # most files are plain, and large
    if renamed:
        carriage = "\r" * text.endswith("\r")
        header = (",".join(renamed.get(name, name) for name in names) + carriage).encode()
    return header + (content[end:] if body is None else body)


def _means(path: Path, cell: str, name: str, units: Mapping[str, str]) -> bool:
    """Whether a cell of the header is a column with its unit; raises `DataError` for another unit."""
    wanted = _WITH_UNIT.fullmatch(name)
    plain, unit = wanted.groups() if wanted else (name, units.get(name))
    if cell.strip() == name:
        return True
    found = _WITH_UNIT.fullmatch(cell.strip()) if plain in cell else None
    if not found or found[1] != plain:
        return False
    # Capitals do not matter: nobody measures in Mg/L.
    if unit is None or found[2].replace(" ", "").casefold() == unit.casefold():
        return True
    factors = conversion(found[2], unit)
    if factors == (1.0, 0.0):
        return True
    how = "convert its values"
    if factors:
        how += f" (times {factors[0]:.10g}{f', {factors[1]:+.10g}' * bool(factors[1])})"
    raise DataError(
        f"{path}:1:1: column {cell!r}; expected {plain!r} in {unit}: {how}, or take the unit out of its "
        f"name if they are in {unit}"
    )


def _unpack(path: Path, raw: bytes) -> bytes:
    if path.suffix != ".gz":
        return raw
    most, content = max(SMALL, MOST_UNPACKED * len(raw)), io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            while piece := file.read(1 << 20):
                content.write(piece)
                if content.tell() > most:
                    raise DataError(unpacks_to_more(path, most))
    except (OSError, EOFError, zlib.error) as error:
        intact = b""
        with contextlib.suppress(zlib.error):  # the readable part, to say where it ends
            intact = zlib.decompressobj(wbits=31).decompress(raw, most)
        line, column = _place(intact, len(intact))
        raise DataError(
            f"{path}:{line}:{column}: the gzip data ends or is damaged here ({_reason(error)}); "
            "expected a complete .gz file, copy it again"
        ) from error
    return content.getvalue()


def _check_size(path: Path, content: bytes) -> None:
    """Refuse lines that are none, and more cells than there is memory for."""
    check_columns(path, content[:LONGEST_LINE])
    start = 0
    while len(content) - start > LONGEST_LINE:
        bounds = start, start + LONGEST_LINE
        end = max(content.rfind(b"\n", *bounds), content.rfind(b"\r", *bounds))
        if end < 0:
            line, _ = _place(content, start)
            raise DataError(
                f"{path}:{line}:1: a line of more than {in_words(LONGEST_LINE)}; expected rows of numbers"
            )
        start = end + 1
    most = _PER_CELL * len(content)  # if every character were a cell
    if most > SMALL and most > free_memory():
        cells = sum(content.count(one) for one in (b",", b";", b"\t", b"\n", b"\r"))
        check_memory(path, _PER_CELL * cells, f"a table of {cells:,} cells")


def _parse(content: bytes, columns: Sequence[str], blanks: bool) -> dict[str, NDArray[np.float64]]:
    """Parse with the fast path; raises ValueError if any of its checks fails."""
    if b"\0" in content:
        raise ValueError("NUL")
    lines = _lines(content)
    names = _cells(next(lines, (0, ""))[1])
    if len(set(names)) != len(names) or not set(columns) <= set(names):
        raise ValueError("header")
    # pandas refuses a row that is too long, except the first one, from which it makes an index.
    if len(_cells(next(lines, (0, ""))[1])) != len(names):
        raise ValueError("first row")
    frame = _read_csv(content, columns, blanks, skip_blank_lines=False)
    if not len(frame):
        raise ValueError("no rows")
    separators = (len(frame) + 1) * (len(names) - 1)
    # A short row has blanks at its end: an error already, if they fall into a column that is read.
    if (blanks or names[-1] not in columns) and content.count(b",") != separators:
        raise ValueError("separators")
    values = {name: frame[name].to_numpy() for name in columns}
    for column in values.values():
        bad = np.abs(column) > _LARGEST
        if bad.any() or (not blanks and np.isnan(column).any()):
            raise ValueError("not finite")
    return values


def _read_csv(
    content: bytes, columns: Sequence[str], blanks: bool, **options: object
) -> pd.DataFrame:
    return pd.read_csv(  # type: ignore[call-overload]
        io.BytesIO(content),
        engine="c",
        dtype=dict.fromkeys(columns, np.float64),
        na_filter=blanks,
        keep_default_na=False,
        na_values=list(_BLANK),
        low_memory=False,
        **options,
    )


def _parse_leniently(
    path: Path, content: bytes, columns: Sequence[str], blanks: bool, cause: Exception
) -> dict[str, NDArray[np.float64]]:
    """Parse a table without errors but out of the ordinary, such as quoted text in an ignored column."""
    try:
        frame = _read_csv(content, columns, blanks, usecols=list(columns))
    except ValueError as error:
        raise DataError(f"{path}:1:1: not a CSV table of numbers ({_reason(error)})") from cause
    return {name: frame[name].to_numpy() for name in columns}


def _diagnose(path: Path, content: bytes, columns: Sequence[str], blanks: bool) -> None:
    """Raise the first error with its place; return if there is none."""

    def fail(line: int, column: int, message: str) -> NoReturn:
        raise DataError(f"{path}:{line}:{column}: {message}") from None

    _check_encoding(content, fail)
    lines = _lines(content)
    line = next(lines, (0, ""))[1]
    header = _header_cells(path, line)
    if not content.strip():
        fail(1, 1, f"the file is empty; expected a header with {', '.join(columns)}")
    if len(header) == 1 and len(columns) > 1:
        for separator in (";", "\t", "|", " "):
            if separator in header[0]:
                fail(1, header[0].index(separator) + 1, f"separator {separator!r}; expected ','")
    seen = set[str]()
    for field, name in enumerate(header):
        if name in seen:
            column = _cell_starts(line)[field]
            fail(1, column, f"column {name!r} appears twice; expected unique column names")
        seen.add(name)
    for name in columns:
        if name not in seen:
            fail(1, 1, f"column {name!r} is missing; expected it among {listed(header, 30)}")
    fields = [(header.index(name), name) for name in columns]
    number = 1
    for number, line in lines:
        cells = _row_cells(number, line, header, fail)
        for field, name in fields:
            problem = _cell_problem(cells[field], name, blanks)
            if problem:
                fail(number, _cell_starts(line)[field], problem)
    if number == 1:
        fail(2, 1, "no rows after the header; expected at least one")


def _check_encoding(content: bytes, fail: Callable[[int, int, str], NoReturn]) -> None:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        fail(1, 1, "UTF-16 text; expected UTF-8, save the file as UTF-8")
    if b"\0" in content:
        fail(*_place(content, content.index(b"\0")), "NUL byte; expected a text file in UTF-8")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        message = f"byte 0x{content[error.start]:02x} is not UTF-8 (Latin-1?); expected UTF-8"
        fail(*_place(content, error.start), f"{message}, save the file as UTF-8")


def _header_cells(path: Path, line: str) -> list[str]:
    try:
        return _cells(line)
    except csv.Error as error:
        column = line.index('"') + 1
        raise DataError(
            f"{path}:1:{column}: unclosed quote; expected names of columns separated by ','"
        ) from error


def _row_cells(
    number: int, line: str, header: Sequence[str], fail: Callable[[int, int, str], NoReturn]
) -> list[str]:
    expected = f"expected {len(header)} cells as in the header"
    if not line.strip():
        fail(number, 1, f"blank line; {expected}")
    try:
        cells = _cells(line)
    except csv.Error:
        fail(number, line.index('"') + 1, f"unclosed quote; {expected}, on one line")
    if cells == list(header):
        fail(number, 1, "the header again; expected a row of numbers")
    if len(cells) < len(header):
        fail(number, len(line) + 1, f"truncated row of {len(cells)} cells; {expected}")
    if len(cells) > len(header):
        column = _cell_starts(line)[len(header)]
        fail(number, column, f"row of {len(cells)} cells; {expected}")
    return cells


def _cell_problem(cell: str, name: str, blanks: bool) -> str | None:
    if blanks and cell in _BLANK:
        return None
    expected = "a number or an empty cell" if blanks else "a finite number"
    if not _NUMBER.fullmatch(cell):
        return f"{cell[:40]!r} in column {name!r}; expected {expected}"
    if abs(float(cell)) > _LARGEST:
        return f"{cell[:40]!r} in column {name!r}; expected {expected} below 3.4e38"
    return None


def _last_cell(line: str) -> str:
    return _cells(line)[-1].strip()


def _written(cell: str) -> tuple[int, int]:
    """Decimals of the mantissa and digits of the exponent of a number."""
    mantissa, _, exponent = cell.lower().partition("e")
    return len(mantissa.partition(".")[2]), len(exponent.lstrip("+-"))


def _lines(content: bytes) -> Iterator[tuple[int, str]]:
    """Yield each line with its number from 1; undecodable bytes are replaced."""
    start, number = 0, 1
    for end in _LINE_END.finditer(content):
        yield number, content[start : end.start()].decode(errors="replace")
        start, number = end.end(), number + 1
    if start < len(content):
        yield number, content[start:].decode(errors="replace")


def _cells(line: str) -> list[str]:
    return next(csv.reader([line], strict=True), []) if '"' in line else line.split(",")


def _cell_starts(line: str) -> list[int]:
    """Column, from 1, of the first character of every cell."""
    starts, quoted = [1], False
    for position, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            starts.append(position + 2)
    return starts


def _place(content: bytes, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of a byte."""
    before = _LINE_END.split(content[:offset])
    return len(before), len(before[-1]) + 1


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)
