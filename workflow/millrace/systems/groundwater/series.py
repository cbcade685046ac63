"""Validated series: the fields of all output times in one HDF5 file, with split and statistics.

`preprocess` reads every source file once and keeps a few of them in memory, however many there are.
"""

import contextlib
import hashlib
import json
import multiprocessing
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import CHUNK_BYTES, create, create_dataset, strings
from millrace.data.split import MINIMUM_STD, Moments, SplitConfig, time_split
from millrace.errors import ConfigError, DataError
from millrace.processes import die_with_parent
from millrace.provenance import code_version
from millrace.systems.base import Progress
from millrace.systems.groundwater.feflow_csv import FeflowReader, Snapshot, open_directory
from millrace.systems.groundwater.units import UNITS

SCHEMA = "millrace.series/1"

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
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Read a directory of FEFLOW results and write ``series.h5``.

    Parameters
    ----------
    source_dir : Path
        See `millrace.systems.groundwater.feflow_csv`.
    output : Path
        The file to write; it appears only when it is complete.
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
    workers : int
        Processes that parse files ahead; the result does not depend on it.
    progress : callable, optional
        Called with (output times done, all).

    Raises
    ------
    DataError
        A source file is malformed or does not fit the others: ``file:line:column``.
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
    reader, first = open_directory(Path(source_dir), variables, forcings)
    ranges = time_split(len(reader), split)
    clipped = _CONCENTRATION if clip_negative_concentration else ""
    writer = _SeriesWriter(reader, ranges, clipped, [units[name] for name in variables])
    options = {
        "variables": list(reader.variables),
        "forcings": list(reader.forcings),
        "split": asdict(split),
        "clip_negative_concentration": clip_negative_concentration,
    }
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    with create(output) as file, contextlib.closing(_snapshots(reader, first, workers)) as stream:
        writer.begin(file)
        for index, snapshot in enumerate(stream):
            digest.update(snapshot.digest)
            writer.add(index, snapshot)
            if progress is not None:
                progress(index + 1, len(reader))
        writer.end()
        file.attrs["schema"] = SCHEMA
        file.attrs["digest"] = digest.hexdigest()
        file.attrs["code_version"] = code_version()
        file.attrs["created_from"] = f"{Path(source_dir).name}: {len(reader)} FEFLOW CSV files"


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
    with ProcessPoolExecutor(workers, fork, _begin_work, (reader,)) as pool:
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


_reader_of_worker: FeflowReader


def _begin_work(reader: FeflowReader) -> None:
    global _reader_of_worker
    die_with_parent()  # a worker whose parent was killed would wait for work for ever
    _reader_of_worker = reader


def _read(index: int) -> Snapshot:
    return _reader_of_worker.read(index)


class _SeriesWriter:
    """Appends output times to a series and gathers its statistics on the way."""

    def __init__(
        self, reader: FeflowReader, ranges: NDArray[np.int64], clipped: str, units: Sequence[str]
    ) -> None:
        self._reader, self._ranges, self._units = reader, ranges, units
        self._clipped = reader.variables.index(clipped) if clipped in reader.variables else None
        self._n_clipped, self._lowest = 0, 0.0
        self._fields = Moments(len(reader.variables))
        self._increments = Moments(len(reader.variables))
        self._forcing = Moments(len(reader.forcings))
        self._previous: Snapshot | None = None

    def begin(self, file: h5py.File) -> None:
        mesh, shape = self._reader.mesh, (len(self._reader), len(self._reader.mesh.node))
        create_dataset(file, "node", mesh.node)
        create_dataset(file, "slice", mesh.slice)
        create_dataset(file, "coords", mesh.coords)
        create_dataset(file, "split", self._ranges)
        self._time = np.empty(len(self._reader))
        self._file = file
        for name, names, dtype in (
            ("obs", self._reader.variables, np.float32),
            ("forcing", self._reader.forcings, np.float32),
            ("forcing_mask", self._reader.forcings, np.uint8),
        ):
            rows = max(1, CHUNK_BYTES // max(1, len(names) * np.dtype(dtype).itemsize))
            chunks = (1, min(shape[1], rows), len(names))
            dataset = create_dataset(
                file, name, shape=(*shape, len(names)), dtype=dtype, chunks=chunks
            )
            dataset.attrs["variables"] = strings(names)
        file["obs"].attrs["units"] = strings(self._units)

    def add(self, index: int, snapshot: Snapshot) -> None:
        if self._clipped is not None:
            column = snapshot.fields_NC[:, self._clipped]
            self._n_clipped += int((column < 0).sum())
            self._lowest = min(self._lowest, float(column.min()))
            np.maximum(column, 0, out=column)
        previous = self._previous
        if previous is not None and snapshot.time <= previous.time:
            raise DataError(
                f"{snapshot.where}: time {snapshot.time:g} d is not after {previous.time:g} d of the "
                "file before; expected files in order of time"
            )
        self._time[index] = snapshot.time
        self._file["obs"][index] = snapshot.fields_NC
        if self._reader.forcings:
            self._file["forcing"][index] = snapshot.forcing_NF
            self._file["forcing_mask"][index] = snapshot.mask_NF
        if index < self._ranges[0, 1]:
            self._fields.add(snapshot.fields_NC)
            self._forcing.add(snapshot.forcing_NF, snapshot.mask_NF)
            if previous is not None:
                self._increments.add(snapshot.fields_NC.astype(np.float64) - previous.fields_NC)
        self._previous = snapshot

    def end(self) -> None:
        file = self._file
        create_dataset(file, "time", self._time)
        minimum = MINIMUM_STD * np.maximum(1, np.abs(self._fields.mean))
        stats = {
            "obs_mean": self._fields.mean,
            "obs_std": np.maximum(self._fields.std, minimum),
            "increment_std": np.maximum(self._increments.std, minimum),
            "forcing_mean": self._forcing.mean,
            "forcing_std": np.maximum(
                self._forcing.std, MINIMUM_STD * np.maximum(1, np.abs(self._forcing.mean))
            ),
        }
        for name, values in stats.items():
            create_dataset(file, f"stats/{name}", values)
        attrs = file["obs"].attrs
        attrs["clip_negative_concentration"] = self._clipped is not None
        attrs["clipped_values"] = self._n_clipped
        attrs["clipped_fraction"] = self._n_clipped / (len(self._time) * file["node"].shape[0])
        attrs["clipped_minimum"] = self._lowest
