"""Nodes without values, which are left out: which ones they are is known when all times were read.

Ranges of times can be looked at in parts (`find_missing`), of which `gather_missing` makes one file.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import create, create_dataset, open_checked
from millrace.data.parts import Parts, Record, digest_of
from millrace.data.shares import Share
from millrace.errors import DataError
from millrace.provenance import fingerprint
from millrace.systems.base import Progress
from millrace.systems.groundwater.feflow_csv import FeflowReader, Snapshot, open_directory
from millrace.systems.groundwater.read_ahead import snapshots
from millrace.systems.groundwater.screening import missing_nodes

SCHEMA, PART_SCHEMA = "millrace.missing_nodes/1", "millrace.missing_nodes_part/2"

Bools = NDArray[np.bool_]


def find_missing(
    source: Path,
    output: Path,
    *,
    variables: Sequence[str],
    units: Mapping[str, str],
    value: float,
    share: Share,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write which nodes are a no-data value in some field, in a share of the output times.

    ``progress`` is called with (output times done, all). Raises `DataError` for malformed files, like
    `millrace.systems.groundwater.series.preprocess`.
    """
    reader, first = open_directory(source, variables, (), units)
    times = share.taken(reader.numbers)
    stream = snapshots(reader, first, times, workers)
    absent_N = absent_nodes(stream, value, len(reader.mesh.node), len(times), progress)
    with create(output) as file:
        create_dataset(file, "absent", absent_N, dtype=np.uint8)
        record = Record.of(source, [reader.numbers[n] for n in times], reader.paths(times))
        record.write(file, PART_SCHEMA, _facts(variables, value, reader))


def _facts(variables: Sequence[str], value: float, reader: FeflowReader) -> dict[str, Any]:
    return {"variables": list(variables), "value": value, "nodes": digest_of(reader.mesh.node)}


def gather_missing(
    parts: Sequence[Path],
    source: Path,
    output: Path,
    *,
    variables: Sequence[str],
    units: Mapping[str, str],
    value: float,
    progress: Progress | None = None,
) -> None:
    """Write which nodes have values at all times, of the files of all parts.

    Raises `DataError` if a part is missing, damaged, or of other raw files, or no node is left.
    """
    reader, _ = open_directory(source, variables, (), units)
    facts = _facts(variables, value, reader)
    every = Parts(parts, PART_SCHEMA, output, facts, reader.numbers, progress)
    with every:
        absent_N = np.logical_or.reduce([part["absent"][()].astype(bool) for part in every.files])
    kept_N = kept_nodes(absent_N, value)
    with create(output) as file:
        create_dataset(file, "kept", kept_N, dtype=np.uint8)
        file.attrs.update(
            schema=SCHEMA, facts=json.dumps({**facts, "raw": fingerprint(source)}, sort_keys=True)
        )
    every.remove_others()


def read_kept(path: Path, source: Path, variables: Sequence[str], value: float) -> Bools:
    """What `gather_missing` wrote, bool[N]; raises `DataError` if it is of other raw files or settings."""
    with open_checked(path, SCHEMA) as file:
        kept_N: Bools = file["kept"][()].astype(bool)
        facts = json.loads(file.attrs["facts"])
    wanted = {"raw": fingerprint(source), "variables": list(variables), "value": value}
    if {key: facts[key] for key in wanted} != wanted:
        raise DataError(f"{path}: of other raw files or settings; delete it and make it again")
    return kept_N


def absent_nodes(
    states: Iterable[Snapshot],
    value: float,
    nodes: int,
    number: int,
    progress: Progress | None = None,
) -> Bools:
    """Nodes at which some field of some state is a no-data value, bool[N]."""
    absent_N = np.zeros(nodes, bool)
    for done, state in enumerate(states, 1):
        absent_N |= missing_nodes(state, value)
        if progress is not None:
            progress(done, number)
    return absent_N


def kept_nodes(absent_N: Bools, value: float) -> Bools:
    """All other nodes; raises `DataError` if there are none."""
    if absent_N.all():
        raise DataError(
            f"every node is {value:g} at some time; with then: mask no node would be left"
        )
    print(f"{absent_N.sum()} of {len(absent_N)} nodes are {value:g} at some time and left out")
    return ~absent_N
