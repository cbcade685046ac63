"""Series in parts: output times, each read by a job of its own into a file that keeps its states.

Where nodes without values are masked, which ones are is found out before, in parts as well
(`millrace.systems.groundwater.missing_nodes`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import create, create_dataset, create_virtual
from millrace.data.parts import Parts, Record, keep, kept, read_json, write_json
from millrace.data.shares import Share
from millrace.errors import DataError
from millrace.systems.base import Progress
from millrace.systems.groundwater.hdf5_parts import Terms
from millrace.systems.groundwater.series import STATES, Made, RawSeries, Rows

PART_SCHEMA = "millrace.series_part/2"
_TERMS = ("fields", "increments", "forcings")


def preprocess_part(
    raw: RawSeries,
    output: Path,
    share: Share,
    missing: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the states of a share of the output times, for `gather_series`.

    ``missing`` is the file that says which nodes are masked, if some are. ``progress`` is called with
    (output times done, all). Besides its own a part reads the first two output times, which sums are
    relative to, and the one before its own. Raises `DataError` like
    `millrace.systems.groundwater.series.preprocess`; no-data values are refused by `gather_series`.
    """
    nodes: Rows = slice(None) if missing is None else raw.kept_in_parts(missing)
    facts, units = raw.facts(nodes), raw.reader.numbers
    if missing is not None:
        found = output.with_name(output.name.replace("series", "missing"))
        if kept(output, PART_SCHEMA, facts, before=found, both=missing):
            return
    numbers = share.taken(units)
    with create(output) as file:
        made = raw.copy(file, numbers, nodes, progress)
        record = Record.of(raw.source, [units[n] for n in numbers], raw.reader.paths(numbers))
        record.write(file, PART_SCHEMA, facts)
        _write(made, file)
    if missing is not None:
        keep(output)


def gather_series(
    raw: RawSeries,
    parts: Sequence[Path],
    output: Path,
    missing: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Write what `preprocess` writes, bit by bit, from the files of all parts, in which the states stay.

    Of the raw files the first one is read again. ``progress`` is called with (parts done, all). Raises
    `DataError` if a part is missing, damaged, or not of the same raw files and settings, or if there are
    no-data values: ``file:line:column``.
    """
    nodes: Rows = slice(None) if missing is None else raw.kept_in_parts(missing)
    every = Parts(parts, PART_SCHEMA, output, raw.facts(nodes), raw.reader.numbers, progress)
    with create(output) as file, every:
        raw.write_mesh(file, nodes)
        made = _join(every, raw.train)
        if (still := np.diff(made.time) <= 0).any():
            before, after = raw.reader.files.fields[(n := int(np.argmax(still))) : n + 2]
            raise DataError(
                f"{after}: time {made.time[n + 1]:g} d is not after {made.time[n]:g} d in {before}; "
                "expected files in order of time"
            )
        for name, dtype in STATES.items():
            create_virtual(file, name, every.virtual(name), dtype, output.parent)
        raw.count(made.account, nodes)
        raw.finish(file, made)
    made.account.write(output.with_name("samples.json"))
    every.remove_others()


def _write(made: Made, file: h5py.File) -> None:
    for name in _TERMS:
        getattr(made, name).write(file.create_group(f"sums/{name}"))
    create_dataset(file, "time", np.array(made.time))
    digests = np.frombuffer(b"".join(made.digest), dtype=np.uint8)
    create_dataset(file, "digest", digests.reshape(len(made.time), -1) if made.time else digests)
    write_json(file, "evidence", made.evidence)
    account = json.dumps(made.account.to_json())
    file.attrs.update(account=account, clipped=made.clipped, lowest=made.lowest)


def _join(parts: Parts, train: int) -> Made:
    """What `_write` stored of all parts, in the order of time."""

    def state(time: int) -> tuple[NDArray, None]:
        return parts.row("obs", time), None

    def change(time: int) -> tuple[NDArray, None]:
        now, before = parts.row("obs", time), parts.row("obs", time - 1)
        return now.astype(np.float64) - before, None

    def forcing(time: int) -> tuple[NDArray, NDArray]:
        return parts.row("forcing", time), parts.row("forcing_mask", time)

    made = Made(
        Terms.complete(parts, "sums/fields", range(train), state),
        Terms.complete(parts, "sums/increments", range(1, train), change, before=1),
        Terms.complete(parts, "sums/forcings", range(train), forcing),
        time=parts.rows("time").tolist(),
        digest=[parts.rows("digest").tobytes()],
    )
    for part in parts.in_order():
        made.evidence += read_json(part, "evidence")
        made.account.add(json.loads(part.attrs["account"]))
        made.clipped += int(part.attrs["clipped"])
        made.lowest = min(made.lowest, float(part.attrs["lowest"]))
    return made
