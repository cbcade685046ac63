"""Validated series: the fields of all output times in one HDF5 file, with split and statistics.

`preprocess` reads every source file once and keeps a few of them in memory, however many there are.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.account import Account, count_steps
from millrace.data.hdf5 import CHUNK_BYTES, create, create_dataset, strings
from millrace.data.split import SplitConfig, time_split
from millrace.errors import ConfigError, DataError
from millrace.processes import die_with_parent
from millrace.provenance import code_version
from millrace.systems.base import Progress
from millrace.systems.groundwater.feflow_csv import (
    FeflowReader,
    Snapshot,
    count_files,
    open_directory,
)
from millrace.systems.groundwater.hdf5_parts import Statistics
from millrace.systems.groundwater.screening import StateScreening, missing_nodes, without
from millrace.systems.groundwater.settings import MaskedMissing
from millrace.systems.groundwater.units import UNITS

SCHEMA = "millrace.series/1"

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
    if not variables:
        raise ConfigError("variables: expected at least one field")
    units = {**UNITS, **(units or {})}
    if unknown := [name for name in variables if name not in units]:
        raise ConfigError(f"units: expected the unit of {unknown[0]!r}, a column of all/*.csv")
    if workers < 1:
        raise ConfigError(f"workers = {workers}: expected 1 or more")
    reader, first = open_directory(Path(source_dir), variables, forcings, units)
    ranges = time_split(len(reader), split)
    options = {
        "variables": list(reader.variables),
        "forcings": list(reader.forcings),
        "split": split.model_dump(),
        "clip_negative_concentration": clip_negative_concentration,
        **({"missing": missing.model_dump()} if missing else {}),
    }
    masked = missing.value if missing and missing.then == "mask" else None
    kept_N: Rows = slice(None)
    if masked is not None:
        kept_N = _kept_nodes(_snapshots(reader, first, workers), masked)
    account = Account()
    count_files(Path(source_dir), reader, account)
    count_steps(account, "output times", ranges)
    account.keep("nodes", int(np.count_nonzero(np.ones(len(reader.mesh.node), bool)[kept_N])))
    if isinstance(kept_N, np.ndarray):
        account.leave_out("nodes", f"have {masked:g} at some time", int((~kept_N).sum()))
    screening = StateScreening(reader, missing, {name: units[name] for name in variables})
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    with create(output) as file, contextlib.closing(_snapshots(reader, first, workers)) as stream:
        writer = _SeriesWriter(file, reader, ranges, clip_negative_concentration, kept_N)
        file["obs"].attrs["units"] = strings([units[name] for name in variables])
        for index, snapshot in enumerate(stream):
            digest.update(snapshot.digest)
            given = int(np.count_nonzero(snapshot.mask_NF))
            if masked is not None:
                snapshot = without(snapshot, masked)
            kept = int(np.count_nonzero(snapshot.mask_NF))
            if reader.forcings:
                account.keep("given forcings", kept)
                account.leave_out("given forcings", f"are {masked}", given - kept)
            screening.add(snapshot)
            writer.add(index, snapshot)
            if progress is not None:
                progress(index + 1, len(reader))
        screening.finish()
        writer.end(account)
        file.attrs.update(
            schema=SCHEMA,
            digest=digest.hexdigest(),
            code_version=code_version(),
            **({"missing": missing.model_dump_json()} if missing else {}),
            created_from=f"{Path(source_dir).name}: {len(reader)} FEFLOW CSV files",
        )
    account.write(output.with_name("samples.json"))


def _snapshots(
    reader: FeflowReader, first: Snapshot, workers: int
) -> Generator[Snapshot, None, None]:
    """All output times in order; at most ``2 * workers`` of them are read ahead."""
    yield first
    if workers == 1:
        yield from (reader.read(index) for index in range(1, len(reader)))
        return
    # Forked workers do not import the main module again, which may be a script without a guard.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, _begin_work, (reader, os.getpid())) as pool:
        pending: deque[Future[Snapshot]] = deque()
        try:
            for index in range(1, len(reader)):
                pending.append(pool.submit(_read, index))
                if len(pending) == 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _kept_nodes(stream: Iterable[Snapshot], missing: float) -> NDArray[np.bool_]:
    """Nodes that have values in all fields at all times, bool[N]."""
    absent_N = np.logical_or.reduce([missing_nodes(snapshot, missing) for snapshot in stream])
    if absent_N.all():
        raise DataError(
            f"every node is {missing:g} at some time; with then: mask no node would be left"
        )
    print(f"{absent_N.sum()} of {len(absent_N)} nodes are {missing:g} at some time and left out")
    return ~absent_N


_reader_of_worker: FeflowReader


def _begin_work(reader: FeflowReader, parent: int) -> None:
    global _reader_of_worker
    die_with_parent(parent)  # a worker whose parent was killed would wait for work for ever
    _reader_of_worker = reader


def _read(index: int) -> Snapshot:
    return _reader_of_worker.read(index)


class _SeriesWriter:
    """Appends output times to a series and gathers its statistics on the way."""

    def __init__(
        self,
        file: h5py.File,
        reader: FeflowReader,
        ranges: NDArray[np.int64],
        clip: bool,
        kept: Rows,
    ) -> None:
        self._kept = kept
        self._file, self._forced, self._train = file, bool(reader.forcings), ranges[0, 1]
        names = reader.variables
        self._clipped = names.index(_CONCENTRATION) if clip and _CONCENTRATION in names else None
        self._n_clipped, self._lowest = 0, 0.0
        self._statistics = Statistics(len(names), len(reader.forcings))
        self._time = np.empty(len(reader))
        self._previous: Snapshot | None = None
        mesh = reader.mesh
        node = mesh.node[kept]
        for name, values in (
            ("node", node),
            ("slice", mesh.slice[kept]),
            ("coords", mesh.coords[kept]),
            ("split", ranges),
        ):
            create_dataset(file, name, values)
        if isinstance(kept, np.ndarray):
            create_dataset(file, "masked/slice", mesh.slice[~kept])
            create_dataset(file, "masked/coords", mesh.coords[~kept])
        for name, names, dtype in (
            ("obs", reader.variables, np.float32),
            ("forcing", reader.forcings, np.float32),
            ("forcing_mask", reader.forcings, np.uint8),
        ):
            shape = (len(reader), len(node), len(names))
            rows = max(1, CHUNK_BYTES // max(1, len(names) * np.dtype(dtype).itemsize))
            chunks = (1, min(shape[1], rows), shape[2])
            dataset = create_dataset(file, name, shape=shape, dtype=dtype, chunks=chunks)
            dataset.attrs["variables"] = strings(names)

    def add(self, index: int, snapshot: Snapshot) -> None:
        if isinstance(self._kept, np.ndarray):
            snapshot = replace(
                snapshot,
                fields_NC=snapshot.fields_NC[self._kept],
                forcing_NF=snapshot.forcing_NF[self._kept],
                mask_NF=snapshot.mask_NF[self._kept],
            )
        if self._clipped is not None:
            column = snapshot.fields_NC[:, self._clipped]
            self._n_clipped += int((column < 0).sum())
            self._lowest = min(self._lowest, float(column.min()))
            np.maximum(column, 0, out=column)
        previous = self._previous
        if previous is not None and snapshot.time <= previous.time:
            raise DataError(
                f"{snapshot.where}: time {snapshot.time:g} d is not after {previous.time:g} d in "
                f"{previous.where}; expected files in order of time"
            )
        self._time[index] = snapshot.time
        self._file["obs"][index] = snapshot.fields_NC
        if self._forced:
            self._file["forcing"][index] = snapshot.forcing_NF
            self._file["forcing_mask"][index] = snapshot.mask_NF
        if index < self._train:
            self._statistics.fields.add(snapshot.fields_NC)
            self._statistics.forcings.add(snapshot.forcing_NF, snapshot.mask_NF)
            if previous is not None:
                change = snapshot.fields_NC.astype(np.float64) - previous.fields_NC
                self._statistics.increments.add(change)
        self._previous = snapshot

    def end(self, account: Account) -> None:
        create_dataset(self._file, "time", self._time)
        self._statistics.write(self._file)
        obs = self._file["obs"]
        obs.attrs.update(
            clip_negative_concentration=self._clipped is not None,
            clipped_values=self._n_clipped,
            clipped_fraction=self._n_clipped / (obs.shape[0] * obs.shape[1]),
            clipped_minimum=self._lowest,
        )
        if self._clipped is not None:
            what, number = f"values of {_CONCENTRATION}", obs.shape[0] * obs.shape[1]
            account.keep(what, number - self._n_clipped)
            account.leave_out(what, "negative, set to 0", self._n_clipped)
