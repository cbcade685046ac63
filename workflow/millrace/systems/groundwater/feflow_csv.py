"""Reader of a directory of FEFLOW results in CSV: one file per output time.

    <base>/all/0000.csv ...                      node, time (d), X, Y, Z, slice, fields
    <base>/forcings_corrected_all/0000.csv ...   node, boundary conditions and sources; blank = none

or, in place of the latter, the older ``<base>/forcings/0000.csv``: a subset of the nodes, with
``hydraulic_head_bc`` for ``head_bc``. Files may be compressed (``.csv.gz``) and numbers may be left
out, so that directories thinned in time can be read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.data.account import Account
from millrace.data.csv_table import CsvTable, read_first, read_header, read_table
from millrace.errors import ConfigError, DataError
from millrace.systems.base import known
from millrace.systems.groundwater.units import UNITS

FORCINGS = ("mass_concentration_bc", "head_bc", "recharge_forcing", "sea_level_forcing")
"""Boundary conditions and sources that a forcing file can hold."""

_OLD_NAMES = {"head_bc": "hydraulic_head_bc"}
_NODE, TIME, SLICE, PLACE = "node", "time (d)", "slice", ("X", "Y", "Z")
_NAME = re.compile(r"(\d+)\.csv(\.gz)?")
Order = NDArray[np.int64] | slice
Place = tuple[str, str, int]
"""A file, a column as it is called there, and the id of a node."""
_UNITS = {
    **UNITS,
    **dict.fromkeys([*PLACE, "head_bc", "hydraulic_head_bc", "sea_level_forcing"], "m"),
    "mass_concentration_bc": "mg/L",
    "recharge_forcing": "m/d",
}
"""What a unit in a header has to be."""
_SAME_TIME = 1e-6  # relative: files of one time may be written with fewer digits
_SAME_PLACE = 1e-3  # m: the mesh does not move, but may be written with fewer digits


@dataclass(frozen=True, eq=False)
class Mesh:
    """What is the same in every file: the nodes, in the row order of the first file."""

    node: NDArray[np.int64]
    """int64[N], ids as in the files."""
    slice: NDArray[np.int32]
    """int32[N], layer of each node."""
    coords: NDArray[np.float64]
    """float64[N, 3] (m)."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state at one output time, in physical units."""

    time: float
    """d"""
    fields_NC: NDArray[np.float32]
    forcing_NF: NDArray[np.float32]
    """0 where no value is given."""
    mask_NF: NDArray[np.uint8]
    """1 where a value is given."""
    digest: bytes
    """Of the raw content of the files it was read from."""
    where: str
    """``file:line:column`` of its time."""


@dataclass(frozen=True)
class FeflowFiles:
    """Files of a directory in order of time, each paired with its forcings."""

    fields: tuple[Path, ...]
    forcings: tuple[Path, ...] = ()
    """As many as ``fields``, or none."""
    forcing_on_all_nodes: bool = True


@dataclass(frozen=True, eq=False)
class FeflowReader:
    """Reads the output times of a directory and checks each against the first.

    Made by `open_directory`; it can be sent to other processes.
    """

    files: FeflowFiles
    variables: tuple[str, ...]
    forcings: tuple[str, ...]
    mesh: Mesh
    _forcing_columns: tuple[str, ...]
    """Names of the forcings in the files."""
    _forcing_nodes: NDArray[np.int64]
    """Node of each row of the first forcing file."""
    units: Mapping[str, str]
    """Of the fields, for headers that name units."""
    _endings: tuple[str, str]
    """How the first file of the fields, of the forcings, ends."""

    def __len__(self) -> int:
        return len(self.files.fields)

    @property
    def numbers(self) -> list[int]:
        """Those in the names of the files, which stay when files are added."""
        return [int(path.name.partition(".")[0]) for path in self.files.fields]

    def paths(self, indices: Sequence[int]) -> list[Path]:
        """Files of some output times."""
        folders = [self.files.fields, *([self.files.forcings] if self.forcings else [])]
        return [paths[index] for paths in folders for index in indices]

    def read(self, index: int) -> Snapshot:
        """Read an output time.

        Raises
        ------
        DataError
            A file is malformed or does not fit the first: ``file:line:column``, what was expected.
        """
        first = self.files.fields[0]
        table = _read_fields(self.files.fields[index], self.variables, self.units)
        order = _match_nodes(table, self.mesh.node, first)
        _check_end(table, first, self._endings[0])
        _check_mesh(table, self.mesh, first)
        forcing = None
        if self.forcings:
            first = self.files.forcings[0]
            forcing = _read_forcings(self.files.forcings[index], self._forcing_columns)
            _match_nodes(forcing, self._forcing_nodes, first)
            _check_end(forcing, first, self._endings[1])
        return self._snapshot(table, order, forcing)

    def place(self, index: int, node: int, column: str) -> Place:
        """Where a value of an output time stands, in some column, at a row of the mesh."""
        path = self.files.fields[index]
        if column not in (*self.variables, TIME, *PLACE, SLICE):
            path = self.files.forcings[index]
            column = self._forcing_columns[self.forcings.index(column)]
        return str(path), column, int(self.mesh.node[node])

    def error(self, index: int, node: int, column: str, message: str) -> DataError:
        """Make an error about the value at a `place`."""
        return error_at(self.place(index, node, column), message, self.units)

    def _snapshot(self, table: CsvTable, order: Order, forcing: CsvTable | None) -> Snapshot:
        times = table.columns[TIME]
        if len(other := np.flatnonzero(times != times[0])):
            row = int(other[0])
            raise table.error(
                row, TIME, f"time {times[row]:g} d; expected {times[0]:g} d as in the first row"
            )
        fields_NC = np.stack([table.columns[name][order] for name in self.variables], axis=1)
        value_NF = np.full((len(fields_NC), len(self.forcings)), np.nan)
        if forcing is not None:
            rows = _rows_of(self.mesh.node, forcing, self.files.fields[0])
            _check_mesh(forcing, self.mesh, self.files.fields[0])
            _check_time(forcing, float(times[0]), table)
            for column, name in enumerate(self._forcing_columns):
                value_NF[rows, column] = forcing.columns[name]
        given_NF = np.isfinite(value_NF)
        return Snapshot(
            time=float(times[0]),
            fields_NC=fields_NC.astype(np.float32),
            forcing_NF=np.where(given_NF, value_NF, 0).astype(np.float32),
            mask_NF=given_NF.astype(np.uint8),
            digest=table.digest + (forcing.digest if forcing else b""),
            where=table.location(0, TIME),
        )


def error_at(place: Place, message: str, units: Mapping[str, str]) -> DataError:
    """Make an error about the value at a place, with the line that it stands in."""
    path, column, node = place
    table = read_table(Path(path), [_NODE, column], blanks=True, units={**_UNITS, **units})
    return table.error(int(np.argmax(table.columns[_NODE] == node)), column, message)


def count_files(base: Path, reader: FeflowReader, account: Account) -> None:
    """Count the files and columns of a directory that are read, and those that are not."""
    files = reader.files
    for folder, read, asked in (
        ("all", files.fields, [_NODE, TIME, *PLACE, SLICE, *reader.variables]),
        ("forcings_corrected_all", files.forcings, [_NODE, *reader._forcing_columns]),
        ("forcings", files.forcings, [_NODE, *reader._forcing_columns]),
    ):
        if not (base / folder).is_dir():
            continue
        what, used = f"files of {folder}/", read and read[0].parent == base / folder
        here = [path for path in (base / folder).iterdir() if not path.name.startswith(".")]
        tables = {path for path in here if path.name.endswith((".csv", ".csv.gz"))}
        account.keep(what, len(read) if used else 0)
        account.leave_out(what, "not CSV", len(here) - len(tables))
        if not used:
            reason = (
                "not asked for"
                if not reader.forcings
                else f"{files.forcings[0].parent.name}/ is read"
            )
            account.leave_out(what, reason, len(tables))
            continue
        account.leave_out(what, "without a file of their number in all/", len(tables - {*read}))
        header = read_header(read[0], asked, {**_UNITS, **reader.units})
        other = sorted({*header} - {*asked, TIME, *PLACE, SLICE})
        account.keep(f"columns of {folder}/", len(header) - len(other))
        account.leave_out(
            f"columns of {folder}/", f"not asked for ({', '.join(other)})", len(other)
        )


def find_files(base: Path, *, with_forcings: bool = True) -> FeflowFiles:
    """List the files of a directory in numerical order.

    Raises
    ------
    DataError
        There are none, a name is not a number, a number appears twice, or the forcings of a time are
        missing.
    """
    fields = _numbered(base / "all")
    if not fields:
        raise DataError(f"{base / 'all'}: no files; expected 0000.csv, 0001.csv, ...")
    for name, complete in (("forcings_corrected_all", True), ("forcings", False)):
        forcings = _numbered(base / name) if with_forcings and (base / name).is_dir() else {}
        if forcings:
            missing = next((number for number in fields if number not in forcings), None)
            if missing is not None:
                raise DataError(
                    f"{base / name}: no file for {fields[missing].name}; "
                    "expected one forcing file for every file in all/"
                )
            return FeflowFiles(
                tuple(fields.values()), tuple(forcings[number] for number in fields), complete
            )
    return FeflowFiles(tuple(fields.values()))


def check_header(
    base: Path, variables: Sequence[str], key: str, units: Mapping[str, str] | None = None
) -> None:
    """Refuse columns that the first file does not have, or not as numbers, before anything runs.

    What else is wrong with a directory is told when it is read; it may be archived by now.

    Raises
    ------
    ConfigError
        With ``key``, the place in the configuration that names the columns.
    """
    try:
        path = find_files(base, with_forcings=False).fields[0]
        first = read_first(path, variables, 1, units)
    except (DataError, OSError, EOFError, ValueError):
        return
    for name in variables:
        known(name, first, key, f"column of {path}")
        if first[name].dtype.kind not in "iuf":
            raise ConfigError(
                f"config: {key}: column {name!r} of {path} holds {first[name].iloc[0]!r}; expected numbers"
            )


def inspect(base: Path) -> dict[str, Any]:
    """Tell what a new project needs to know of a directory, from the first of its files.

    Returns
    -------
    dict
        ``variables``: head and concentration, else some other column, which then is in ``units`` as well;
        ``others``: further columns of numbers; ``forcings``: those that are given somewhere;
        ``slice_groups`` and ``clusters``: numbers of patches, so that each has some hundred nodes.

    Raises
    ------
    DataError
        As `open_directory`.
    """
    files = find_files(base)
    table = _read_fields(files.fields[0], ())
    others = [_NODE, TIME, *PLACE, SLICE, "ts"]
    fields = [name for name in _numeric(files.fields[0]) if name not in others]
    variables = [name for name in ("head", "mass_concentration") if name in fields] or fields[:1]
    if not variables:
        raise DataError(f"{files.fields[0]}:1:1: no field; expected a column such as head")
    forcings = [name for path in files.forcings[:1] for name in _numeric(path)]
    names = {old: new for new, old in _OLD_NAMES.items()}
    slices = len(np.unique(table.columns[SLICE]))
    groups = max(1, min(4, slices // 4))
    return {
        "variables": variables,
        "units": {name: "unknown" for name in variables if name not in UNITS},
        "others": [name for name in fields if name not in variables],
        "forcings": [names.get(name, name) for name in forcings if name not in others],
        "slice_groups": groups,
        "clusters": max(1, min(20, round(len(table) / groups / 300))),
    }


def _numeric(path: Path) -> list[str]:
    """Columns of a file that hold numbers, in the first rows that there are."""
    first = read_first(path, (), 1000).dropna(axis="columns", how="all")
    return [str(name) for name in first if first[name].dtype.kind in "iuf"]


def count_times(base: Path) -> int | None:
    """Number of output times, by the names of the files; None: there are none, or something is wrong."""
    try:
        return len(find_files(base, with_forcings=False).fields)
    except (DataError, OSError):
        return None


def open_directory(
    base: Path,
    variables: Sequence[str],
    forcings: Sequence[str] | None = None,
    units: Mapping[str, str] | None = None,
) -> tuple[FeflowReader, Snapshot]:
    """Open a directory: a reader of all output times, and the first of them.

    Parameters
    ----------
    variables : sequence of str
        Fields to read, such as ``head``.
    forcings : sequence of str, optional
        Of `FORCINGS`; by default all that the directory has, which may be none.
    units : mapping, optional
        Units of fields, which headers may name; by default `UNITS`.

    Raises
    ------
    DataError
        A file is missing or malformed, or there are no forcings although some were asked for.
    """
    base = Path(base)
    files = find_files(base, with_forcings=forcings is None or len(forcings) > 0)
    names, columns = _forcing_names(base, files, forcings)
    table = _read_fields(files.fields[0], variables, units)
    mesh = Mesh(
        node=_unique_nodes(table),
        slice=_integers(table, SLICE).astype(np.int32),
        coords=np.stack([table.columns[axis] for axis in PLACE], axis=1),
    )
    forcing, nodes = None, np.empty(0, dtype=np.int64)
    if names:
        forcing = _read_forcings(files.forcings[0], columns)
        nodes = _unique_nodes(forcing)
        if files.forcing_on_all_nodes:
            _match_nodes(forcing, mesh.node, files.fields[0])
    for one in (table, forcing):
        if one is not None:
            _check_end(one, one.path, one.ending)
    endings = table.ending, "newline" if forcing is None else forcing.ending
    reader = FeflowReader(
        files, tuple(variables), names, mesh, columns, nodes, units or {}, endings
    )
    return reader, reader._snapshot(table, slice(None), forcing)


def _numbered(folder: Path) -> dict[int, Path]:
    """Files of a folder by number, ascending; hidden files do not count."""
    found: dict[int, Path] = {}
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected files 0000.csv, 0001.csv, ...")
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith((".csv", ".csv.gz")):
            continue
        match = _NAME.fullmatch(path.name)
        if not match:
            raise DataError(f"{path}: expected a number as name, such as 0000.csv")
        other = found.setdefault(int(match[1]), path)
        if other != path:
            raise DataError(f"{path}: same number as {other.name}; expected one file a time")
    return dict(sorted(found.items()))


def _forcing_names(
    base: Path, files: FeflowFiles, wanted: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Forcings to read, and their names in the files."""
    if not files.forcings:
        if wanted:
            raise DataError(
                f"{base}: neither forcings_corrected_all/ nor forcings/ holds CSV files; "
                f"expected {', '.join(wanted)}, or ask for no forcings"
            )
        return (), ()
    header = read_header(files.forcings[0], [*FORCINGS, *_OLD_NAMES.values()], _UNITS)
    column = {
        name: _OLD_NAMES[name] if name not in header and _OLD_NAMES.get(name) in header else name
        for name in (*FORCINGS, *(wanted or ()))
    }
    if wanted is None:  # if none is there, reading them will say what is wrong with the header
        wanted = [name for name in FORCINGS if column[name] in header] or FORCINGS
    return tuple(wanted), tuple(column[name] for name in wanted)


def _read_fields(
    path: Path, variables: Sequence[str], units: Mapping[str, str] | None = None
) -> CsvTable:
    columns = [*dict.fromkeys([_NODE, TIME, *PLACE, SLICE, *variables])]
    return read_table(path, columns, units={**_UNITS, **(units or {})})


def _read_forcings(path: Path, columns: Sequence[str]) -> CsvTable:
    """Read forcings, with times and places where the file has them."""
    labels = [TIME, *PLACE, SLICE]
    present = [name for name in labels if name in read_header(path, labels, _UNITS)]
    return read_table(path, [_NODE, *present, *columns], blanks=True, units=_UNITS)


def _integers(table: CsvTable, column: str) -> NDArray[np.int64]:
    values = table.columns[column]
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    wrong = np.flatnonzero(whole != values)
    if len(wrong):
        row = int(wrong[0])
        raise table.error(row, column, f"{values[row]:g} in column {column!r}; expected an integer")
    return whole


def _unique_nodes(table: CsvTable) -> NDArray[np.int64]:
    nodes = _integers(table, _NODE)
    _, first, index = np.unique(nodes, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[index] < np.arange(len(nodes)))
    if len(again):
        row = int(again[0])
        line = first[index][row] + 2
        raise table.error(
            row, _NODE, f"node {nodes[row]} again, first in line {line}; expected one row"
        )
    return nodes


def _find(nodes: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of nodes among others."""
    order = np.argsort(among)
    return order[np.searchsorted(among[order], nodes)]


def _check_known(table: CsvTable, nodes: NDArray[np.int64], mesh: NDArray, first: Path) -> None:
    unknown = np.flatnonzero(~np.isin(nodes, mesh))
    if len(unknown):
        row = int(unknown[0])
        raise table.error(row, _NODE, f"node {nodes[row]} is not in {first}; expected its nodes")


def _match_nodes(table: CsvTable, expected: NDArray[np.int64], first: Path) -> Order:
    """Order in which the rows of a table are those of the expected nodes."""
    nodes = _integers(table, _NODE)
    if np.array_equal(nodes, expected):
        return slice(None)
    _unique_nodes(table)
    _check_known(table, nodes, expected, first)
    if len(nodes) < len(expected):
        row = len(nodes)
        if np.array_equal(nodes, expected[:row]):
            raise DataError(
                f"{table.path}:{row + 2}:1: the file ends after {row} rows; "
                f"expected {len(expected)} as in {first}"
            )
        missing = expected[~np.isin(expected, nodes)][0]
        row = int(np.argmax(nodes != expected[:row]))
        raise table.error(row, _NODE, f"node {missing} is missing; expected the nodes of {first}")
    return _find(expected, nodes)


def _rows_of(mesh_nodes: NDArray[np.int64], forcing: CsvTable, first: Path) -> Order:
    """Rows of the mesh at which the nodes of a forcing file are."""
    nodes = forcing.columns[_NODE].astype(np.int64)
    if np.array_equal(nodes, mesh_nodes):
        return slice(None)
    _check_known(forcing, nodes, mesh_nodes, first)
    return _find(nodes, mesh_nodes)


def _check_end(table: CsvTable, first: Path, ending: str) -> None:
    """Refuse a file that may be cut; ``ending`` is that of the first file."""
    own = table.ending
    if (own == "newline") != (ending == "newline"):
        end, other = (
            (table.end(), first)
            if ending == "newline"
            else (f"{first}:{len(table) + 1}:1", table.path)
        )
        raise DataError(
            f"{end}: the last line has no newline, unlike {other}; expected a complete file, copy it again"
        )
    if table.may_be_cut or own != ending:
        raise DataError(
            f"{table.end()}: the file ends without a newline, and perhaps within its last cell; expected a "
            "complete file: copy it again, or end it with a newline if it is complete"
        )


def _check_mesh(table: CsvTable, mesh: Mesh, first: Path) -> None:
    """Refuse places and slices, as far as a table has them, that are not those of its nodes."""
    rows = _rows_of(mesh.node, table, first)
    for name, values in zip((*PLACE, SLICE), (*mesh.coords.T, mesh.slice), strict=True):
        if name not in table.columns:
            continue
        expected, found = values[rows], table.columns[name]
        moved = ~(np.abs(found - expected) <= _SAME_PLACE)
        if moved.any():
            row = int(np.argmax(moved))
            place = f"{name} of node {table.columns[_NODE][row]:g}"
            raise table.error(
                row,
                name,
                f"{place} is {found[row]:.10g}; expected {expected[row]:.10g} as in {first}",
            )


def _check_time(forcing: CsvTable, time: float, fields: CsvTable) -> None:
    """Refuse forcings of another time than that of the fields, if they tell theirs."""
    if TIME in forcing.columns:
        times = forcing.columns[TIME]
        other = ~(np.abs(times - time) <= _SAME_TIME * max(1, abs(time)))
        if other.any():
            row = int(np.argmax(other))
            raise forcing.error(
                row, TIME, f"time {times[row]:g} d; expected {time:g} d as in {fields.path}"
            )
