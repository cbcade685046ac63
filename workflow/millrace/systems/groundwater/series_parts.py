"""Series in parts: ranges of output times, each read by a job of its own into a file that keeps its states.

Where nodes without values are masked, which ones are is found out before, in parts as well
(`millrace.systems.groundwater.missing_nodes`).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from millrace.data.hdf5 import create, create_dataset, create_virtual
from millrace.data.parts import describe_part, open_parts, part_of
from millrace.systems.base import Progress
from millrace.systems.groundwater.hdf5_parts import Terms
from millrace.systems.groundwater.series import STATES, Made, RawSeries, Rows, finish

PART_SCHEMA = "millrace.series_part/1"
_TERMS = ("fields", "increments", "forcings")


def preprocess_part(
    raw: RawSeries,
    output: Path,
    part: int,
    parts: int,
    missing: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the states of one of several ranges of output times, for `gather_series`.

    ``part`` counts from 0; the last ones may be empty. ``missing`` is the file that says which nodes are
    masked, if some are. ``progress`` is called with (output times done, all). Besides its own a part reads
    the first two output times, which sums are relative to, and the one before its own. Raises `DataError`
    like `millrace.systems.groundwater.series.preprocess`; no-data values are refused by `gather_series`.
    """
    mesh, times = raw.reader.mesh, part_of(len(raw.reader), part, parts)
    kept: Rows = slice(None) if missing is None else raw.kept_in_parts(missing)
    content = hashlib.sha256()
    for values in (mesh.node, mesh.slice, mesh.coords):
        content.update(np.ascontiguousarray(values[kept]).data)
    with create(output) as file:
        if times.start == 0:
            raw.write_mesh(file, kept)
        made = raw.copy(file, times, kept, progress)
        facts = {**raw.facts(), "mesh": content.hexdigest()}
        describe_part(file, PART_SCHEMA, facts, times)
        _write(made, file)


def gather_series(parts: Sequence[Path], output: Path, progress: Progress | None = None) -> None:
    """Write what `preprocess` writes, bit by bit, from the files of all parts, in which the states stay.

    ``progress`` is called with (parts done, all). Raises `DataError` if a part is missing, damaged, or not
    of the same raw files and settings as the first, or if there are no-data values: ``file:line:column``.
    """
    shapes: dict[str, list[tuple[Path, tuple[int, ...]]]] = {name: [] for name in STATES}
    made: Made | None = None
    with create(output) as file:
        for path, part, facts in open_parts(parts, PART_SCHEMA, output, progress):
            if made is None:
                options = facts["options"]
                made = Made.empty(len(options["variables"]), len(options["forcings"]))
                for name in ("node", "slice", "coords", "split", "masked/slice", "masked/coords"):
                    if name in part:
                        create_dataset(file, name, part[name][()])
            _join(made, part)
            for name, found in shapes.items():
                found.append((path, part[name].shape))
        assert made is not None
        for name, dtype in STATES.items():
            create_virtual(file, name, shapes[name], dtype, output.parent)
        finish(file, facts, made)
    made.account.write(output.with_name("samples.json"))


def _write(made: Made, file: h5py.File) -> None:
    for name in _TERMS:
        getattr(made, name).write(file.create_group(f"sums/{name}"))
    create_dataset(file, "time", np.array(made.time))
    digests = np.frombuffer(b"".join(made.digest), dtype=np.uint8)
    create_dataset(file, "digest", digests.reshape(len(made.time), -1) if made.time else digests)
    evidence = json.dumps(made.evidence).encode()
    create_dataset(file, "evidence", np.frombuffer(evidence, dtype=np.uint8))
    account = json.dumps(made.account.to_json())
    file.attrs.update(account=account, clipped=made.clipped, lowest=made.lowest)


def _join(made: Made, part: h5py.File) -> None:
    """Add what `_write` stored of the next part."""
    fields, increments, forcings = (Terms.read(part["sums"][name]) for name in _TERMS)
    made.fields.join(fields)
    made.increments.join(increments)
    if made.forcings.fits(forcings):
        made.forcings.join(forcings)
    else:
        for number in range(len(forcings)):
            made.forcings.add(part["forcing"][number], part["forcing_mask"][number])
    made.time += part["time"][()].tolist()
    made.digest.append(part["digest"][()].tobytes())
    made.evidence += json.loads(part["evidence"][()].tobytes())
    made.account.add(json.loads(part.attrs["account"]))
    made.clipped += int(part.attrs["clipped"])
    made.lowest = min(made.lowest, float(part.attrs["lowest"]))
