"""Validated series: the fields of all output times in one HDF5 file, with split and statistics.

`preprocess` reads every source file once and keeps a few of them in memory, however many there are. Times
can be read in parts, see `millrace.systems.groundwater.series_parts`. Sums and digests are those of single
times, so that the file is the same, bit by bit, whatever the number of parts.

Shape suffixes: N nodes, C fields, F forcings.
"""

import contextlib
import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.account import Account, count_steps
from millrace.data.hdf5 import CHUNK_BYTES, create, create_dataset, strings
from millrace.data.parts import digest_of
from millrace.data.split import SplitConfig, time_split
from millrace.errors import ConfigError, DataError
from millrace.provenance import code_version
from millrace.systems.base import Block, Progress
from millrace.systems.groundwater.feflow_csv import Snapshot, count_files, open_directory
from millrace.systems.groundwater.hdf5_parts import Statistics, Terms
from millrace.systems.groundwater.missing_nodes import absent_nodes, kept_nodes, read_kept
from millrace.systems.groundwater.read_ahead import snapshots
from millrace.systems.groundwater.screening import (
    StateScreening,
    judge,
    mesh_evidence,
    without,
)
from millrace.systems.groundwater.settings import MaskedMissing
from millrace.systems.groundwater.units import UNITS

SCHEMA = "millrace.series/1"
STATES = {"obs": np.float32, "forcing": np.float32, "forcing_mask": np.uint8}
"""Datasets [T, N, C or F] and their types."""

Rows = slice | NDArray[np.bool_]
"""Nodes that are kept: all, or those of a mask."""
_CONCENTRATION = "mass_concentration"


def preprocess(
    source_dir: Path,
    output: Path,
    *,
    variables: Sequence[str],
    units: Mapping[str, str] | None = None,
    forcings: Sequence[str] | None,
    split: SplitConfig,
    clip_negative_concentration: bool = False,
    missing: MaskedMissing | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Read a directory of FEFLOW results and write ``series.h5``, which appears when it is complete.

    `samples.json` beside ``output`` says what was read, kept, and left out for which reason.

    Parameters
    ----------
    source_dir : Path
        See `millrace.systems.groundwater.feflow_csv`.
    variables : sequence of str
        Fields to keep, such as ``head``.
    units : mapping, optional
        Units of fields that are not among `UNITS`; numbers and digest do not depend on them.
    forcings : sequence of str, optional
        Boundary conditions and sources to keep; None: all that there are, which may be none.
    split : SplitConfig
        Statistics are those of the training range.
    clip_negative_concentration : bool
        Set negative ``mass_concentration`` (undershoot of the solver) to 0; how many values that were
        and the lowest of them become attributes.
    missing : MaskedMissing, optional
        What a no-data value means. Of nodes that are masked, coordinates and slices are kept apart.
    workers : int
        Processes that parse files ahead; the result does not depend on it.
    progress : callable, optional
        Called with (output times done, all).

    Raises
    ------
    DataError
        A source file is malformed, does not fit the others, or holds no-data values:
        ``file:line:column``.
    ConfigError
        The options do not fit each other or the number of steps.
    """
    raw = RawSeries(
        source_dir,
        variables=variables,
        units=units,
        forcings=forcings,
        split=split,
        clip_negative_concentration=clip_negative_concentration,
        missing=missing,
        workers=workers,
    )
    kept = raw.kept()
    with create(output) as file:
        raw.write_mesh(file, kept)
        made = raw.copy(file, range(len(raw.reader)), kept, progress)
        raw.count(made.account, kept)
        raw.finish(file, made)
    made.account.write(output.with_name("samples.json"))


def series_options(dataset: Block) -> dict[str, Any]:
    """Options of `preprocess` by a dataset's block of the configuration; raises `ConfigError`."""
    given = dataset.get("missing")
    return {
        "variables": dataset["variables"],
        "units": dataset.get("units"),
        "forcings": dataset.get("forcings", []),
        "split": SplitConfig.parse(split, "split") if (split := dataset.get("split")) else None,
        "clip_negative_concentration": dataset.get("clip_negative_concentration", False),
        "missing": MaskedMissing.parse(given, "missing") if given else None,
    }


@dataclass
class Made:
    """What a series holds beside the states, of some of these in the order of time."""

    fields: Terms
    increments: Terms
    forcings: Terms
    """Sums of each time, those of changes only where the time before is among them."""
    time: list[float] = field(default_factory=list)
    digest: list[bytes] = field(default_factory=list)
    """Of the files of each time."""
    clipped: int = 0
    """Values that were set to 0."""
    lowest: float = 0.0
    """Least of them."""
    account: Account = field(default_factory=Account)
    evidence: list[Mapping[str, Any]] = field(default_factory=list)
    """For `millrace.systems.groundwater.screening.judge`."""

    @classmethod
    def empty(cls, fields: int, forcings: int) -> Self:
        """Of no states, with so many fields and forcings."""
        return cls(Terms(fields), Terms(fields), Terms(forcings))


class RawSeries:
    """A directory of FEFLOW results, opened, and what is kept of it; options are those of `preprocess`.

    Without a ``split`` parts of it can be read, but not made into a series.
    """

    def __init__(
        self,
        source: Path,
        *,
        variables: Sequence[str],
        units: Mapping[str, str] | None = None,
        forcings: Sequence[str] | None,
        split: SplitConfig | None = None,
        clip_negative_concentration: bool = False,
        missing: MaskedMissing | None = None,
        workers: int = 1,
    ) -> None:
        if not variables:
            raise ConfigError("variables: expected at least one field")
        units = {**UNITS, **(units or {})}
        if unknown := [name for name in variables if name not in units]:
            raise ConfigError(f"units: expected the unit of {unknown[0]!r}, a column of all/*.csv")
        if workers < 1:
            raise ConfigError(f"workers = {workers}: expected 1 or more")
        self.source, self._workers, self._missing = Path(source), workers, missing
        self.reader, self._first = open_directory(self.source, variables, forcings, units)
        self._split = split
        self._units = {name: units[name] for name in variables}
        self._clip = clip_negative_concentration
        self._options = {
            "variables": list(self.reader.variables),
            "forcings": list(self.reader.forcings),
            "clip_negative_concentration": clip_negative_concentration,
            **({"missing": missing.model_dump()} if missing else {}),
        }
        self._masked = missing.value if missing and missing.then == "mask" else None

    @cached_property
    def _ranges(self) -> NDArray[np.int64]:
        assert self._split is not None
        return time_split(len(self.reader), self._split)

    @property
    def train(self) -> int:
        """Times of the training range, which comes first."""
        return int(self._ranges[0, 1])

    def facts(self, kept: Rows) -> dict[str, Any]:
        """What describes the states and is the same in all parts, as plain values."""
        mesh = self.reader.mesh
        return {
            "options": self._options,
            "units": self._units,
            "mesh": digest_of(*(one[kept] for one in (mesh.node, mesh.slice, mesh.coords))),
            "nodes left out": digest_of(~kept) if isinstance(kept, np.ndarray) else None,
        }

    def kept_in_parts(self, missing: Path) -> Rows:
        """Nodes that are kept, which `gather_missing` found; raises `DataError` if it looked elsewhere."""
        assert self._masked is not None
        return read_kept(missing, self.source, self.reader.variables, self._masked)

    def kept(self) -> Rows:
        """Nodes that are kept; all files are read if some are to be left out."""
        if self._masked is None:
            return slice(None)
        numbers, nodes = range(len(self.reader)), len(self.reader.mesh.node)
        states = self._states(numbers)
        return kept_nodes(absent_nodes(states, self._masked, nodes, len(numbers)), self._masked)

    def write_mesh(self, file: h5py.File, kept: Rows) -> None:
        """Write what is the same at all times, and how these are split."""
        mesh = self.reader.mesh
        names = ("node", "slice", "coords")
        for name in names:
            create_dataset(file, name, getattr(mesh, name)[kept])
        create_dataset(file, "split", self._ranges)
        if isinstance(kept, np.ndarray):
            for name in names[1:]:
                create_dataset(file, f"masked/{name}", getattr(mesh, name)[~kept])

    def copy(
        self, file: h5py.File, numbers: Sequence[int], kept: Rows, progress: Progress | None
    ) -> Made:
        """Write the states of some times, ascending; raises `DataError` like `preprocess`.

        Beside them it reads the first two, which sums are relative to, and those before ranges of them.
        """
        columns = {"obs": self.reader.variables}
        columns |= dict.fromkeys(("forcing", "forcing_mask"), self.reader.forcings)
        nodes = len(self.reader.mesh.node[kept])
        for name, dtype in STATES.items():
            shape = (len(numbers), nodes, len(columns[name]))
            rows = max(1, CHUNK_BYTES // max(1, shape[2] * np.dtype(dtype).itemsize))
            chunks = (1, min(nodes, rows), shape[2])
            create_dataset(file, name, shape=shape, dtype=dtype, chunks=chunks)
        made = Made.empty(*map(len, (self.reader.variables, self.reader.forcings)))
        screening = StateScreening(self.reader, self._missing, self._units)
        beside = {n - 1 for n in numbers if n} | {n for n in (0, 1) if n < len(self.reader)}
        read = sorted({*numbers, *(beside if numbers else ())})
        row, last, previous = 0, -1, None
        with contextlib.closing(self._states(read)) as stream:
            for number, raw in zip(read, stream, strict=True):
                state = self._without(raw)
                follows = last == number - 1
                is_mine = row < len(numbers) and numbers[row] == number
                screening.add(number, state, is_mine, follows)
                chosen, negative, lowest = self._chosen(state, kept)
                if number == 0:
                    made.fields.begin(chosen.fields_NC)
                    made.forcings.begin(chosen.forcing_NF, chosen.mask_NF)
                elif number == 1 and previous is not None:
                    made.increments.begin(_change(chosen, previous))
                if is_mine:
                    made.digest.append(raw.digest)
                    self._count_forcings(made.account, raw, state)
                    made.clipped, made.lowest = made.clipped + negative, min(made.lowest, lowest)
                    made.time.append(state.time)
                    file["obs"][row] = chosen.fields_NC
                    if self.reader.forcings:
                        file["forcing"][row] = chosen.forcing_NF
                        file["forcing_mask"][row] = chosen.mask_NF
                    made.fields.add(chosen.fields_NC)
                    made.forcings.add(chosen.forcing_NF, chosen.mask_NF)
                    if previous is not None and follows:
                        _check_order(chosen, previous)
                    if previous is not None and row and numbers[row - 1] == number - 1:
                        made.increments.add(_change(chosen, previous))
                    else:
                        made.increments.skip()
                    row += 1
                    if progress is not None:
                        progress(row, len(numbers))
                last, previous = number, chosen
        made.evidence.append(screening.evidence())
        return made

    def _states(self, numbers: Sequence[int]) -> Generator[Snapshot, None, None]:
        return snapshots(self.reader, self._first, numbers, self._workers)

    def _without(self, state: Snapshot) -> Snapshot:
        return state if self._masked is None else without(state, self._masked)

    def _chosen(self, state: Snapshot, kept: Rows) -> tuple[Snapshot, int, float]:
        """What is kept of a state, how many values are clipped, and the least of its column."""
        if isinstance(kept, np.ndarray):
            state = replace(
                state,
                fields_NC=state.fields_NC[kept],
                forcing_NF=state.forcing_NF[kept],
                mask_NF=state.mask_NF[kept],
            )
        if not self._clip or _CONCENTRATION not in self.reader.variables:
            return state, 0, 0.0
        fields_NC = state.fields_NC.copy(order="K")
        column_N = fields_NC[:, self.reader.variables.index(_CONCENTRATION)]
        negative, lowest = int((column_N < 0).sum()), float(column_N.min())
        np.maximum(column_N, 0, out=column_N)
        return replace(state, fields_NC=fields_NC), negative, lowest

    def count(self, account: Account, kept: Rows) -> None:
        """Count files, times and nodes."""
        nodes = len(self.reader.mesh.node[kept])
        count_files(self.source, self.reader, account)
        count_steps(account, "output times", self._ranges)
        account.keep("nodes", nodes)
        if self._masked is not None:
            left = len(self.reader.mesh.node) - nodes
            account.leave_out("nodes", f"have {self._masked:g} at some time", left)

    def _count_forcings(self, account: Account, raw: Snapshot, state: Snapshot) -> None:
        if self.reader.forcings:
            given, kept = (int(np.count_nonzero(one.mask_NF)) for one in (raw, state))
            account.keep("given forcings", kept)
            account.leave_out("given forcings", f"are {self._masked}", given - kept)

    def finish(self, file: h5py.File, made: Made) -> None:
        """Add times, statistics, digest and attributes; refuses no-data values, see `judge`."""
        assert self._split is not None
        variables, options = self.reader.variables, self._options
        options = {**options, "split": self._split.model_dump()}
        mesh = mesh_evidence(self.reader, self._without(self._first), self._missing, self._units)
        judge(made.evidence, mesh, self._missing, self._units)
        create_dataset(file, "time", np.array(made.time))
        statistics = Statistics(len(variables), len(self.reader.forcings))
        statistics.fields = made.fields.moments(self.train)
        statistics.forcings = made.forcings.moments(self.train)
        statistics.increments = made.increments.moments(self.train, start=1)
        statistics.write(file)
        obs = file["obs"]
        values = obs.shape[0] * obs.shape[1]
        is_clipped = self._clip and _CONCENTRATION in variables
        obs.attrs.update(
            variables=strings(variables),
            units=strings([self._units[name] for name in variables]),
            clip_negative_concentration=is_clipped,
            clipped_values=made.clipped,
            clipped_fraction=made.clipped / values,
            clipped_minimum=made.lowest,
        )
        for name in ("forcing", "forcing_mask"):
            file[name].attrs["variables"] = strings(self.reader.forcings)
        if is_clipped:
            what = f"values of {_CONCENTRATION}"
            made.account.keep(what, values - made.clipped)
            made.account.leave_out(what, "negative, set to 0", made.clipped)
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
        digest.update(b"".join(made.digest))
        missing = self._missing
        file.attrs.update(
            schema=SCHEMA,
            digest=digest.hexdigest(),
            code_version=code_version(),
            **({"missing": missing.model_dump_json()} if missing else {}),
            created_from=f"{self.source.name}: {len(self.reader)} FEFLOW CSV files",
        )


def _change(state: Snapshot, previous: Snapshot) -> NDArray[np.float64]:
    change: NDArray[np.float64] = state.fields_NC.astype(np.float64) - previous.fields_NC
    return change


def _check_order(state: Snapshot, previous: Snapshot) -> None:
    if state.time <= previous.time:
        raise DataError(
            f"{state.where}: time {state.time:g} d is not after {previous.time:g} d in "
            f"{previous.where}; expected files in order of time"
        )
