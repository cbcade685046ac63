"""Every malformed file is refused with its place; harmless differences change nothing."""

import codecs
import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from millrace.data.split import SplitConfig
from millrace.errors import DataError
from millrace.systems.groundwater.feflow_csv import (
    FORCINGS,
    check_header,
    find_files,
    open_directory,
)
from millrace.systems.groundwater.series import preprocess

VARIABLES = ("mass_concentration", "head")
LAST = 121  # line of the last of 120 nodes
BAD = 3  # number of the file that is damaged


def replace_cell(line: int, field: int, value: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        lines = text.split("\n")
        cells = lines[line - 1].split(",")
        cells[field] = value
        lines[line - 1] = ",".join(cells)
        return "\n".join(lines)

    return change


def replace_line(line: int, edit: Callable[[str], str]) -> Callable[[str], str]:
    def change(text: str) -> str:
        lines = text.split("\n")
        lines[line - 1] = edit(lines[line - 1])
        return "\n".join(lines)

    return change


def without_lines(first: int, last: int) -> Callable[[str], str]:
    return lambda text: "\n".join(text.split("\n")[: first - 1] + text.split("\n")[last:])


def column(text: str, line: int, field: int) -> int:
    """Column, from 1, at which a cell begins."""
    return len(",".join(text.split("\n")[line - 1].split(",")[:field])) + 1 + (field > 0)


# name: (damage, line, field where the error is, or None for its column, words of the message)
FIELD_FAULTS: dict[str, tuple[Callable[[str], str], int, int, str]] = {
    "missing column": (lambda t: t.replace("head", "level", 1), 1, 0, "'head' is missing"),
    "text in numbers": (replace_cell(7, 9, "dry"), 7, 9, "'dry' in column 'head'"),
    "text in coordinates": (replace_cell(7, 3, "east"), 7, 3, "'east' in column 'X'"),
    "number with a comma for a point": (
        replace_cell(7, 9, "0,5"), 7, 10, "row of 11 cells; expected 10"),
    "text in node": (replace_cell(7, 0, "n6"), 7, 0, "'n6' in column 'node'"),
    "fraction in node": (replace_cell(7, 0, "6.5"), 7, 0, "6.5 in column 'node'"),
    "header again": (replace_line(9, lambda _: "node,ts,time (d),X,Y,Z,slice,mass_concentration,"
                                  "pressure,head"), 9, 0, "the header again"),
    "duplicate column": (lambda t: t.replace("pressure", "head", 1), 1, 9, "'head' appears twice"),
    "duplicate node": (replace_cell(12, 0, "5"), 12, 0, "node 5 again, first in line 6"),
    "missing node": (without_lines(12, 12), 12, 0, "node 11 is missing"),
    "unknown node": (replace_cell(12, 0, "999"), 12, 0, "node 999 is not in"),
    "one node more": (lambda t: t + "121" + t.split("\n")[-2][3:] + "\n", 122, 0, "node 121 is not in"),
    "fewer rows": (without_lines(100, LAST), 100, 0, "ends after 98 rows; expected 120"),
    "header only": (without_lines(2, LAST), 2, 0, "no rows after the header"),
    "inf": (replace_cell(7, 9, "inf"), 7, 9, "'inf' in column 'head'"),
    "-Infinity": (replace_cell(7, 7, "-Infinity"), 7, 7, "'-Infinity' in column 'mass_con"),
    "1e999": (replace_cell(7, 9, "1e999"), 7, 9, "'1e999' in column 'head'"),
    "beyond single precision": (replace_cell(7, 9, "1e39"), 7, 9, "'1e39' in column 'head'"),
    "NaN in a target": (replace_cell(7, 9, "NaN"), 7, 9, "'NaN' in column 'head'"),
    "empty target": (replace_cell(7, 7, ""), 7, 7, "'' in column 'mass_concentration'"),
    "long row": (replace_line(8, lambda line: line + ",1.0"), 8, 10, "row of 11 cells"),
    "long first row": (replace_line(2, lambda line: line + ",1.0"), 2, 10, "row of 11 cells"),
    "long rows": (
        lambda t: "\n".join([t.split("\n")[0], *(f"{line},1" for line in t.split("\n")[1:-1]), ""]),
        2, 10, "row of 11 cells"),
    "blank line": (replace_line(8, lambda _: ""), 8, 0, "blank line"),
    "two times in a file": (replace_cell(50, 2, "99.5"), 50, 2, "time 99.5 d; expected"),
    "time before the last": (
        lambda t: "\n".join(",".join([*line.split(",")[:2], "0.001", *line.split(",")[3:]])
                            if line[:1].isdigit() else line for line in t.split("\n")),
        2, 2, "time 0.001 d is not after"),
    "another place": (replace_cell(20, 3, "334000.0"), 20, 3, "X of node 19 is 334000"),
    "another slice": (replace_cell(20, 6, "4"), 20, 6, "slice of node 19 is 4"),
    "unclosed quote": (replace_cell(30, 7, '"12.0'), 30, 7, "unclosed quote"),
    "unclosed quote in the header": (lambda t: t.replace("ts", '"ts', 1), 1, 1, "unclosed quote"),
}  # fmt: skip


@pytest.fixture
def bad(aquifer) -> Path:
    return aquifer.base / "all" / f"{BAD:04d}.csv"


def read_all(base: Path) -> list:
    reader, first = open_directory(base, VARIABLES)
    return [first, *(reader.read(index) for index in range(1, len(reader)))]


def refusal(aquifer, tmp_path: Path) -> str:
    """Message of the error, having checked that nothing is left behind."""
    output = tmp_path / "out" / "series.h5"
    with pytest.raises(DataError) as caught:
        preprocess(
            aquifer.base,
            output,
            variables=VARIABLES,
            forcings=FORCINGS,
            split=SplitConfig(train=0.5, validation=0.25, gap=1),
        )
    assert not list(output.parent.glob("*")) if output.parent.exists() else True
    return str(caught.value)


@pytest.mark.parametrize("fault", FIELD_FAULTS)
def test_malformed_fields_are_refused_with_their_place(aquifer, bad, tmp_path, fault) -> None:
    damage, line, field, words = FIELD_FAULTS[fault]
    text = damage(bad.read_text())
    assert text != bad.read_text()
    bad.write_text(text)
    at = 1 if field == 0 else column(text, line, field)
    message = refusal(aquifer, tmp_path)
    assert message.startswith(f"{bad}:{line}:{at}: "), message
    assert words in message
    assert "expected" in message


def test_a_truncated_row_is_refused_at_its_end(aquifer, bad, tmp_path) -> None:
    bad.write_text(replace_line(40, lambda line: line[:30])(bad.read_text()))
    assert refusal(aquifer, tmp_path).startswith(f"{bad}:40:31: truncated row of")


def test_short_and_long_rows_do_not_cancel(aquifer, bad, tmp_path) -> None:
    text = replace_line(40, lambda line: line.rsplit(",", 1)[0])(bad.read_text())
    bad.write_text(replace_line(50, lambda line: line + ",1")(text))
    assert f"{bad}:40:" in refusal(aquifer, tmp_path)


def test_a_file_cut_within_the_last_number_is_refused(aquifer, bad, tmp_path) -> None:
    text = bad.read_text()[:-3]
    bad.write_text(text)
    end = len(text.split("\n")[-1]) + 1
    message = refusal(aquifer, tmp_path)
    assert message.startswith(f"{bad}:{LAST}:{end}: the last line has no newline"), message


def test_a_first_file_cut_within_the_last_number_is_refused(aquifer, tmp_path) -> None:
    first = aquifer.base / "all" / "0000.csv"
    text = first.read_text()[:-3]
    first.write_text(text)
    end = len(text.split("\n")[-1]) + 1
    message = refusal(aquifer, tmp_path)
    assert message.startswith(f"{first}:{LAST}:{end}: the file ends without a newline"), message


@pytest.mark.parametrize("number", ["0000.csv", "0003.csv"])
@pytest.mark.parametrize("form", ["{:.5f}", "{:.6e}"])
def test_a_number_that_is_cut_is_refused_where_no_file_ends_with_a_newline(
    aquifer, tmp_path, number, form
) -> None:
    for path in (aquifer.base / "all").iterdir():
        header, *lines = path.read_text().splitlines()
        cells = [line.rsplit(",", 1) for line in lines]
        rows = [f"{before},{form.format(float(last))}" for before, last in cells]
        path.write_text("\n".join([header, *rows]))
    assert len(read_all(aquifer.base)) == 12
    path = aquifer.base / "all" / number
    path.write_text(path.read_text()[:-1])
    assert "without a newline, and perhaps within its last cell" in refusal(aquifer, tmp_path)


BYTE_FAULTS: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "NUL": (lambda b: b.replace(b"3", b"\0", 1), r"2:\d+", "NUL byte"),
    "empty": (lambda b: b"", "1:1", "the file is empty"),
    "blank": (lambda b: b"\n\n", "1:1", "the file is empty"),
    "utf-16": (lambda b: b.decode().encode("utf-16"), "1:1", "UTF-16"),
    "utf-16 without BOM": (lambda b: b.decode().encode("utf-16-le"), "1:2", "NUL byte"),
    "latin-1": (lambda b: b.replace(b"ts", "°".encode("latin-1"), 1), "1:6", "0xb0 is not UTF-8"),
    "bars": (lambda b: b.replace(b",", b"|"), "1:5", "separator '|'"),
    "thousands": (
        lambda b: b.replace(b",", b";").replace(b";6249", b";6,249", 1),
        r"2:\d+",
        "both ',' and '.' in numbers",
    ),
    "another unit": (
        lambda b: b.replace(b"head", b"head [cm]", 1),
        "1:1",
        "column 'head [cm]'; expected 'head' in m: convert",
    ),
    "another unit of the time": (
        lambda b: b.replace(b"time (d)", b"time (h)", 1),
        "1:1",
        "column 'time (h)'; expected 'time' in d: convert",
    ),
}


def german(text: bytes) -> bytes:
    return text.replace(b",", b";").replace(b".", b",")


DIALECTS: dict[str, Callable[[bytes], bytes]] = {
    "semicolons": lambda b: b.replace(b",", b";"),
    "semicolons and decimal commas": german,
    "tabs": lambda b: b.replace(b",", b"\t"),
    "tabs and decimal commas": lambda b: b.replace(b",", b"\t").replace(b".", b","),
    "units": lambda b: (
        b.replace(b",head\n", b",head [m]\n", 1)
        .replace(b",head_bc", b",head_bc [m]", 1)
        .replace(b"time (d)", b"time [days]", 1)
        .replace(b",X,Y,Z,", b",X (m),Y_[m],Z [masl],", 1)
        .replace(b"mass_concentration,", b"mass_concentration [mg/l],", 1)
    ),
    "all of it, with line ends of Windows": lambda b: german(
        b.replace(b",head\n", b",head [m]\n", 1).replace(b"\n", b"\r\n")
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("files", ["0003.csv", "*.csv"])
def test_dialects_of_spreadsheets_are_read_like_the_files_they_come_from(
    aquifer, dialect, files
) -> None:
    expected = read_all(aquifer.base)
    for path in aquifer.base.rglob(files):
        text = DIALECTS[dialect](path.read_bytes())
        assert files == "*.csv" or text != path.read_bytes()
        path.write_bytes(text)
    check_header(aquifer.base, VARIABLES, "datasets.site.variables")
    for one, other in zip(read_all(aquifer.base), expected, strict=True):
        assert one.time == other.time
        for name in ("fields_NC", "forcing_NF", "mask_NF"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_places_of_errors_are_those_in_the_file_of_a_dialect(aquifer, bad, tmp_path) -> None:
    bad.write_bytes(german(replace_cell(7, 9, "dry")(bad.read_text()).encode()))
    place = len(bad.read_text().splitlines()[6].rsplit(";", 1)[0]) + 2
    assert refusal(aquifer, tmp_path).startswith(f"{bad}:7:{place}: 'dry' in column 'head'")


@pytest.mark.parametrize("fault", BYTE_FAULTS)
def test_what_is_no_such_text_is_refused(aquifer, bad, tmp_path, fault) -> None:
    damage, place, words = BYTE_FAULTS[fault]
    bad.write_bytes(damage(bad.read_bytes()))
    message = refusal(aquifer, tmp_path)
    assert re.match(re.escape(str(bad)) + f":{place}: ", message), message
    assert words in message
    assert "expected" in message


def test_a_truncated_gz_is_refused_where_its_text_ends(aquifer, bad, tmp_path) -> None:
    packed = gzip.compress(bad.read_bytes())
    bad.unlink()
    path = bad.with_name(bad.name + ".gz")
    path.write_bytes(packed[: len(packed) // 2])
    message = refusal(aquifer, tmp_path)
    line = int(re.match(re.escape(str(path)) + r":(\d+):\d+: the gzip data", message)[1])
    assert 5 < line < LAST


def test_text_with_the_name_of_a_gz_is_refused(aquifer, bad, tmp_path) -> None:
    path = bad.rename(bad.with_name(bad.name + ".gz"))
    assert refusal(aquifer, tmp_path).startswith(f"{path}:1:1: the gzip data")


def test_a_directory_in_place_of_a_file_is_refused(aquifer, bad, tmp_path) -> None:
    bad.unlink()
    bad.mkdir()
    assert refusal(aquifer, tmp_path).startswith(f"{bad}:1:1: cannot be read (Is a directory)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(aquifer, bad, tmp_path) -> None:
    bad.chmod(0)
    assert refusal(aquifer, tmp_path).startswith(f"{bad}:1:1: cannot be read (Permission denied)")


@pytest.mark.parametrize("number", [0, BAD])
@pytest.mark.parametrize(
    ("damage", "line", "field", "words"),
    [
        (replace_cell(7, 2, "dry"), 7, 2, "'dry' in column 'head_bc'"),
        (replace_cell(7, 2, "inf"), 7, 2, "'inf' in column 'head_bc'"),
        (replace_cell(7, 0, ""), 7, 0, "nan in column 'node'"),
        (replace_cell(12, 0, "5"), 12, 0, "node 5 again"),
        (without_lines(100, LAST), 100, 0, "ends after 98 rows"),
        (without_lines(12, 12), 12, 0, "node 11 is missing"),
        (lambda t: t.replace("head_bc", "h", 1), 1, 0, "'head_bc' is missing"),
        (replace_line(9, lambda line: line.rsplit(",", 1)[0]), 9, None, "truncated row of 4"),
    ],
)
def test_malformed_forcings_are_refused(
    aquifer, tmp_path, number, damage, line, field, words
) -> None:
    path = aquifer.base / "forcings_corrected_all" / f"{number:04d}.csv"
    text = damage(path.read_text())
    path.write_text(text)
    at = r"\d+" if field is None else 1 if field == 0 else column(text, line, field)
    message = refusal(aquifer, tmp_path)
    assert re.match(re.escape(str(path)) + f":{line}:{at}: ", message), message
    assert words in message


def assert_same(snapshots: list, aquifer) -> None:
    assert len(snapshots) == len(aquifer.time)
    for step, snapshot in enumerate(snapshots):
        assert snapshot.time == aquifer.time[step]
        np.testing.assert_array_equal(
            snapshot.fields_NC, aquifer.obs[step][:, [0, 2]].astype(np.float32)
        )
        given = np.isfinite(aquifer.forcing[step])
        np.testing.assert_array_equal(snapshot.mask_NF, given)
        expected = np.where(given, aquifer.forcing[step], 0).astype(np.float32)
        np.testing.assert_array_equal(snapshot.forcing_NF, expected)


def shuffled_rows(data: bytes) -> bytes:
    header, *rows = data.decode().splitlines()
    np.random.default_rng(0).shuffle(rows)
    return ("\n".join([header, *rows]) + "\n").encode()


def reversed_columns(data: bytes) -> bytes:
    return "".join(
        ",".join(line.split(",")[::-1]) + "\n" for line in data.decode().splitlines()
    ).encode()


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: data,
    "BOM": lambda data: codecs.BOM_UTF8 + data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "BOM and CRLF": lambda data: codecs.BOM_UTF8 + data.replace(b"\n", b"\r\n"),
    "blank lines at the end": lambda data: data + b"\n\n",
    "quoted header": lambda data: data.replace(b"node", b'"node"', 1),
    "other order of rows": shuffled_rows,
    "other order of columns": reversed_columns,
    "one more column of text, with commas": lambda data: data.replace(b"\n", b',"a, b"\n').replace(
        b'"a, b"', b'"the, place"', 1
    ),
}


@pytest.mark.parametrize("folder", ["all", "forcings_corrected_all"])
@pytest.mark.parametrize("difference", HARMLESS)
def test_harmless_differences_change_nothing(aquifer, folder, difference) -> None:
    path = aquifer.base / folder / f"{BAD:04d}.csv"
    path.write_bytes(HARMLESS[difference](path.read_bytes()))
    assert_same(read_all(aquifer.base), aquifer)


def test_the_first_file_gives_the_order_of_nodes(aquifer) -> None:
    for path in sorted((aquifer.base / "all").iterdir())[:2]:
        path.write_bytes(shuffled_rows(path.read_bytes()))
    reader, first = open_directory(aquifer.base, VARIABLES)
    rows = reader.mesh.node - 1
    assert (np.diff(rows) < 0).any()
    np.testing.assert_array_equal(reader.mesh.coords, aquifer.coords[rows])
    for step, snapshot in enumerate([first, reader.read(1), reader.read(2)]):
        expected = aquifer.obs[step][rows][:, [0, 2]].astype(np.float32)
        np.testing.assert_array_equal(snapshot.fields_NC, expected)
        given = np.isfinite(aquifer.forcing[step][rows])
        np.testing.assert_array_equal(snapshot.mask_NF, given)
        expected = np.where(given, aquifer.forcing[step][rows], 0).astype(np.float32)
        np.testing.assert_array_equal(snapshot.forcing_NF, expected)


def test_what_is_not_read_may_hold_anything(aquifer, bad) -> None:
    bad.write_text(replace_cell(7, 8, "n/a")(bad.read_text()))  # pressure
    assert_same(read_all(aquifer.base), aquifer)


def test_compressed_files_and_gaps_in_the_numbers_are_read(aquifer) -> None:
    for folder in ("all", "forcings_corrected_all"):
        for path in sorted((aquifer.base / folder).iterdir()):
            number = int(path.stem)
            packed = path.with_name(f"{7 * number}.csv.gz")
            data = path.read_bytes()
            path.unlink()
            packed.write_bytes(gzip.compress(data))
        (aquifer.base / folder / ".DS_Store").write_bytes(b"\0")
    assert_same(read_all(aquifer.base), aquifer)  # 7.csv comes before 14.csv and 21.csv


def test_the_older_forcings_on_some_nodes(aquifer) -> None:
    new, old = aquifer.base / "forcings_corrected_all", aquifer.base / "forcings"
    old.mkdir()
    for path in new.iterdir():
        header, *rows = path.read_text().splitlines()
        rows = [row for row in rows if row.split(",")[2]][::-1]
        text = "\n".join([header.replace("head_bc", "hydraulic_head_bc"), *rows]) + "\n"
        (old / path.name).write_text(text)
        path.unlink()
    reader, first = open_directory(aquifer.base, VARIABLES, ["head_bc"])
    for step, snapshot in enumerate([first, reader.read(1)]):
        given = np.isfinite(aquifer.forcing[step, :, 1])
        assert 0 < given.sum() < len(given)
        np.testing.assert_array_equal(snapshot.mask_NF[:, 0], given)
        np.testing.assert_array_equal(
            snapshot.forcing_NF[given, 0], aquifer.forcing[step, given, 1].astype(np.float32)
        )


def test_no_forcings_at_all(aquifer) -> None:
    for path in (aquifer.base / "forcings_corrected_all").iterdir():
        path.unlink()
    reader, first = open_directory(aquifer.base, VARIABLES)
    assert reader.forcings == ()
    assert first.forcing_NF.shape == (120, 0)
    with pytest.raises(DataError, match="neither forcings_corrected_all/ nor forcings/"):
        open_directory(aquifer.base, VARIABLES, ["head_bc"])


def test_missing_files_are_named(aquifer, tmp_path) -> None:
    (aquifer.base / "forcings_corrected_all" / "0004.csv").unlink()
    with pytest.raises(DataError, match=r"no file for 0004\.csv"):
        find_files(aquifer.base)
    with pytest.raises(DataError, match="no such folder"):
        find_files(tmp_path / "nowhere")


def test_names_that_are_no_or_the_same_number_are_refused(aquifer) -> None:
    extra = aquifer.base / "all" / "4.csv"
    extra.write_text("")
    with pytest.raises(DataError, match="same number as"):
        find_files(aquifer.base)
    extra.rename(extra.with_name("summary.csv"))
    with pytest.raises(DataError, match=r"summary\.csv: expected a number"):
        find_files(aquifer.base)


def test_each_file_is_parsed_once(aquifer, monkeypatch) -> None:
    import pandas as pd

    calls = []
    parse = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *a, **k: calls.append(1) or parse(*a, **k))
    read_all(aquifer.base)
    assert len(calls) == 2 * len(aquifer.time)


def without_newline(path, change) -> None:
    """Rewrite the last column of a file, and leave out the newline at its end."""
    header, *lines = path.read_text().splitlines()
    rows = [line.rpartition(",") for line in lines]
    path.write_text("\n".join([header, *(f"{before},{change(last)}" for before, _, last in rows)]))


# name: (digits of the last column, cut characters), and whether the file is read
ENDINGS = {
    "one format": (lambda v: f"{float(v):.5f}", 0, True),
    "one format, cut": (lambda v: f"{float(v):.5f}", 1, False),
    "exponents": (lambda v: f"{float(v):.6e}", 0, True),
    "exponents, cut in them": (lambda v: f"{float(v):.6e}", 1, False),
    "exponents, cut before them": (lambda v: f"{float(v):.6e}", 4, False),
    "few digits of any number": (lambda v: f"{float(v):.4g}", 0, False),
    "many digits of any number": (lambda v: repr(float(float(v) / np.pi)), 0, True),
    "many digits, cut where it does not matter": (lambda v: repr(float(float(v) / np.pi)), 1, True),
    "many digits, cut where it does": (lambda v: repr(float(float(v) / np.pi)), 12, False),
    "whole numbers": (lambda v: f"{1000 * float(v):.0f}", 0, False),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("number", [0, BAD])
def test_a_file_without_a_newline_at_its_end_is_read_where_its_last_number_is_whole(
    aquifer, tmp_path, ending, number
) -> None:
    form, cut, is_read = ENDINGS[ending]
    for path in (aquifer.base / "all").iterdir():
        without_newline(path, form)
    path = aquifer.base / "all" / f"{number:04d}.csv"
    whole = float(form(repr(float(aquifer.obs[number, -1, 2]))))
    path.write_text(path.read_text()[: -cut or None])
    if is_read:
        assert read_all(aquifer.base)[number].fields_NC[-1, 1] == pytest.approx(whole, rel=1e-7)
    else:
        message = refusal(aquifer, tmp_path)
        assert "without a newline, and perhaps within its last cell" in message
        assert ending in ("few digits of any number", "whole numbers") or str(path) in message


def test_a_blank_last_cell_without_a_newline_is_read_if_it_is_blank_in_all_files(
    aquifer, tmp_path
) -> None:
    paths = sorted((aquifer.base / "forcings_corrected_all").iterdir())
    for path in paths:
        path.write_text(path.read_text().rpartition(",")[0] + ",")
    assert len(read_all(aquifer.base)) == 12
    paths[BAD].write_text(paths[BAD].read_text() + "0.512345678912")
    assert refusal(aquifer, tmp_path).startswith(f"{paths[BAD]}:{LAST}:")


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("time (d)", lambda v: v + 1, "expected .* d as in .*all/0003.csv"),
        ("X", lambda v: v.round(-1), "X of node 1 is .*; expected"),
        ("slice", lambda v: v[::-1], "slice of node 1 is 4; expected 1"),
    ],
)
def test_forcings_of_another_time_or_place_than_they_say_are_refused(
    aquifer, tmp_path, column, change, words
) -> None:
    path = aquifer.base / "forcings_corrected_all" / f"{BAD:04d}.csv"
    fields = pd.read_csv(aquifer.base / "all" / f"{BAD:04d}.csv")
    table = pd.read_csv(path)
    table[column] = fields[column]
    table.to_csv(path, index=False)
    assert_same(read_all(aquifer.base), aquifer)
    table[column] = change(fields[column].to_numpy())
    table.to_csv(path, index=False)
    assert re.match(re.escape(str(path)) + rf":2:\d+: .*{words}", refusal(aquifer, tmp_path))


# name: (header, words of the refusal, None: it is read)
HEADERS = {
    "metres above sea level": ("head [m a.s.l.]", None),
    "as CF writes it": ("mass_concentration [g m-3]", None),
    "as people write it": ("mass_concentration (MG/L)", None),
    "feet": ("head [ft]", r"expected 'head' in m: convert its values \(times 0.3048\)"),
    "grams": ("mass_concentration [g/l]", r"in mg/L: convert its values \(times 1000\)"),
    "kilograms": ("mass_concentration_[kg/m3]", r"in mg/L: convert its values \(times 1000\)"),
    "another quantity": ("mass_concentration [ppm]", r"in mg/L: convert its values, or take"),
}


@pytest.mark.parametrize("header", HEADERS)
def test_units_in_headers_are_read_by_the_routine_of_all_systems(
    aquifer, tmp_path, bad, header
) -> None:
    name, words = HEADERS[header]
    column = re.split(r"[ _]*[\[(]", name)[0]
    bad.write_text(bad.read_text().replace(column, name, 1))
    if words is None:
        assert_same(read_all(aquifer.base), aquifer)
    else:
        message = refusal(aquifer, tmp_path)
        assert message.startswith(f"{bad}:1:1: column {name!r}; ")
        assert re.search(words, message), message
