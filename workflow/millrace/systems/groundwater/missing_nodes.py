"""Nodes without values, which are left out: which ones they are is known when all times were read.

Ranges of times can be looked at in parts (`find_missing`), of which `gather_missing` makes one file.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import create, create_dataset, open_checked
from millrace.data.parts import describe_part, open_parts, part_of
from millrace.errors import DataError
from millrace.provenance import fingerprint
from millrace.systems.base import Progress
from millrace.systems.groundwater.feflow_csv import Snapshot, open_directory
from millrace.systems.groundwater.read_ahead import snapshots
from millrace.systems.groundwater.screening import missing_nodes

SCHEMA, PART_SCHEMA = "millrace.missing_nodes/1", "millrace.missing_nodes_part/1"

Bools = NDArray[np.bool_]


def find_missing(
    source: Path,
    output: Path,
    *,
    variables: Sequence[str],
    units: Mapping[str, str],
    value: float,
    part: int,
    parts: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write which nodes are a no-data value in some field, in one of several ranges of times.

    ``part`` counts from 0; ``progress`` is called with (output times done, all). Raises `DataError` for
    malformed files, like `millrace.systems.groundwater.series.preprocess`.
    """
    reader, first = open_directory(source, variables, (), units)
    times = part_of(len(reader), part, parts)
    stream = snapshots(reader, first, times, workers)
    absent_N = absent_nodes(stream, value, len(reader.mesh.node), len(times), progress)
    facts = {
        "raw": fingerprint(source),
        "variables": list(variables),
        "value": value,
        "times": len(reader),
    }
    with create(output) as file:
        create_dataset(file, "absent", absent_N, dtype=np.uint8)
        describe_part(file, PART_SCHEMA, facts, times)


def gather_missing(parts: Sequence[Path], output: Path, progress: Progress | None = None) -> None:
    """Write which nodes have values at all times, of the files of all parts.

    Raises `DataError` if a part is missing, damaged, or of other raw files, or no node is left.
    """
    absent_N, found = np.zeros(1, bool), {"value": 0.0}
    for _, part, facts in open_parts(parts, PART_SCHEMA, output, progress):
        absent_N, found = absent_N | part["absent"][()].astype(bool), facts
    kept_N = kept_nodes(absent_N, found["value"])
    with create(output) as file:
        create_dataset(file, "kept", kept_N, dtype=np.uint8)
        file.attrs.update(schema=SCHEMA, facts=json.dumps(found, sort_keys=True))


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
