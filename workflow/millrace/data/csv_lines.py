"""CSV with text and numbers, some rows at a time: every row has the cells of the header, or is refused."""

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from millrace.errors import DataError, first_line
from millrace.input_files import check_columns, check_file, check_memory, open_file

_PER_BYTE = 4  # bytes of memory for one of a file that is read at once


def read_rows(
    path: Path, numbers: Sequence[str] | None = None, rows: int | None = None
) -> Iterator[pd.DataFrame]:
    """Yield tables of at most ``rows`` rows, whose index is the line of the file.

    Columns in ``numbers`` (None: all but ``time``) hold numbers, NaN where a cell is blank; others are as
    pandas reads them. Raises `DataError` with file and line if a row has more or fewer cells than the
    header, a cell is text or infinite, the text is not UTF-8 or the last line has no newline.
    """
    number, line = 1, ""
    check_file(path)
    try:
        if rows is None:
            check_memory(path, _PER_BYTE * path.stat().st_size)
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline=None) as file:
            header = file.readline()
            names = [name.strip() for name in header.rstrip("\n").split(",")]
            _check_header(path, names)
            while lines := list(itertools.islice(file, rows)):
                for line in lines:
                    number += 1
                    _check_line(path, number, line, len(names))
                table = pd.read_csv(
                    io.StringIO("".join(lines)),
                    names=names,
                    skipinitialspace=True,
                    index_col=False,
                    skip_blank_lines=False,
                )
                table.index = pd.RangeIndex(number - len(lines) + 1, number + 1)
                for name in names if numbers is None else numbers:
                    if name in names and name != "time":
                        table[name] = _numbers(path, table, name)
                yield table
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{_line_of(path)}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file "
            "as UTF-8"
        ) from None
    except (OSError, pd.errors.ParserError) as error:
        raise DataError(
            f"{path}: not readable as CSV with a header ({first_line(error)})"
        ) from None
    if number == 1:
        raise DataError(f"{path}:2: no rows after the header; expected at least one")
    if not line.endswith("\n"):
        raise DataError(
            f"{path}:{number}: the last line has no newline, so it may be cut off; copy the file again, or "
            "end it with a newline"
        )


def header_of(path: Path) -> list[str]:
    """Names of the columns; raises `DataError` if there are none, or one is there twice."""
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", errors="replace") as file:
            names = [name.strip() for name in file.readline().rstrip("\n").split(",")]
    except OSError as error:
        raise DataError(
            f"{path}: not readable as CSV with a header ({first_line(error)})"
        ) from None
    _check_header(path, names)
    return names


def _check_header(path: Path, names: Sequence[str]) -> None:
    check_columns(path, ",".join(names).encode())
    if len(names) == 1:
        separator = next((s for s in ";\t|" if s in names[0]), None)
        found = f"separator {separator!r}" if separator else f"the header {names[0][:80]!r}"
        raise DataError(f"{path}:1: {found}; expected names of columns separated by ','")
    twice = next((name for name, number in Counter(names).items() if number > 1), None)
    if twice is not None:
        raise DataError(f"{path}:1: column {twice!r} appears twice; expected unique names")


def _check_line(path: Path, number: int, line: str, cells: int) -> None:
    if "\0" in line:
        raise DataError(f"{path}:{number}: NUL byte; expected a text file in UTF-8")
    found = line.count(",") + 1
    if '"' in line:
        found = len(next(csv.reader([line])))
    if not line.strip():
        raise DataError(f"{path}:{number}: blank line; expected {cells} cells as in the header")
    if found != cells:
        raise DataError(
            f"{path}:{number}: row of {found} cells; expected {cells} as in the header, and numbers with a "
            "decimal point"
        )


def _numbers(path: Path, table: pd.DataFrame, name: str) -> "pd.Series[float]":
    values = pd.to_numeric(table[name], errors="coerce")
    # pandas takes True and False for 1 and 0.
    text = values.isna() & table[name].notna() if table[name].dtype != bool else ~values.isna()
    wrong = np.flatnonzero(text.to_numpy() | np.isinf(values.to_numpy(dtype=np.float64)))
    if len(wrong):
        raise DataError(
            f"{path}:{table.index[wrong[0]]}: {name} is {str(table[name].iloc[wrong[0]])[:40]!r}, not a "
            "number"
        )
    return values


def _line_of(path: Path) -> int:
    """Line of the first byte that is not UTF-8."""
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
