"""The file `scenarios.h5`: tokenised scenarios.

Scenarios have different numbers of agents, road segments and traffic lights. The rows of all scenarios lie
one after the other, and ``first`` of each kind of row says where those of a scenario begin.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from millrace.data.hdf5 import create_dataset, strings
from millrace.errors import DataError
from millrace.systems.traffic.geometry import Floats
from millrace.systems.traffic.tokens import TokenisedScenario

SCHEMA = "millrace.scenarios/2"
TOGETHER = 16
"""Scenarios that are tokenised and written at once: they are what tokenising holds, 1 MB each."""
_CHUNK = 1 << 16  # bytes: a scenario is read at a time, not a file

ROWS: dict[str, dict[str, tuple[str, Any]]] = {
    "agent": {
        "kind": ("kind_A", np.int8),
        "size": ("size_A2", np.float32),
        "token": ("token_AK", np.int16),
        "pose": ("pose_AK3", np.float32),
        "valid": ("valid_AK", np.uint8),
        "true": ("true_AT3", np.float32),
    },
    "road": {
        "token": ("token_M", np.int16),
        "type": ("type_M", np.int8),
        "point": ("point_M32", np.float32),
        "next": ("next_M", np.int32),
        "light": ("light_M", np.int32),
    },
    "light": {"state": ("light_LK", np.int8)},
}
"""Columns of each kind of row: attribute of `TokenisedScenario`, and type in the file."""
OF_SCENARIO = ("split", "origin", "name")
"""Datasets that have one value for each scenario."""


def datasets_of_rows() -> list[tuple[str, Any]]:
    """Names and types of the datasets of all kinds of rows."""
    return [
        (f"{kind}/{name}", dtype)
        for kind, columns in ROWS.items()
        for name, (_, dtype) in columns.items()
    ]


class Writer:
    """Appends scenarios to growing HDF5 datasets, a buffer at a time."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._buffer: dict[str, list[np.ndarray]] = {}
        self._first: dict[str, list[int]] = {kind: [0] for kind in ROWS}
        self._names: list[str] = []
        self._tracks: list[str] = []
        self._split: list[int] = []
        self._origin: list[Floats] = []

    def add(self, scenario: TokenisedScenario, split: int) -> None:
        """Append a scenario."""
        for kind, columns in ROWS.items():
            for name, (attribute, dtype) in columns.items():
                rows = np.asarray(getattr(scenario, attribute), dtype=dtype)
                self._buffer.setdefault(f"{kind}/{name}", []).append(rows)
            self._first[kind].append(self._first[kind][-1] + len(rows))
        self._names.append(scenario.name)
        self._tracks += scenario.track_A
        self._split.append(split)
        self._origin.append(scenario.origin_2)
        if len(self._names) % TOGETHER == 0:
            self._flush()

    def _flush(self) -> None:
        for name, parts in self._buffer.items():
            rows = np.concatenate(parts)
            shape = rows.shape[1:]
            if name not in self._file:
                row_bytes = rows.dtype.itemsize * int(np.prod(shape))
                chunks = (max(1, _CHUNK // row_bytes), *shape)
                self._file.create_dataset(
                    name,
                    (0, *shape),
                    rows.dtype,
                    maxshape=(None, *shape),
                    chunks=chunks,
                    compression="gzip",
                    compression_opts=1,
                    shuffle=True,
                    fletcher32=True,
                )
            dataset = self._file[name]
            n = len(dataset)
            dataset.resize(n + len(rows), axis=0)
            dataset[n:] = rows
        self._buffer = {}

    def finish(self, may_be_empty: bool = False) -> int:
        """Write what is of all scenarios; returns their number."""
        self._flush()
        columns: dict[str, np.ndarray] = {
            "split": np.array(self._split, dtype=np.int8),
            "origin": np.array(self._origin).reshape(-1, 2),
            "name": strings(self._names),
        }
        written = write_columns(self._file, self._first, columns, may_be_empty)
        write_tracks(self._file, [strings(self._tracks)])
        return written


def write_columns(
    file: h5py.File,
    first: Mapping[str, Sequence[int]],
    columns: Mapping[str, np.ndarray],
    may_be_empty: bool = False,
) -> int:
    """Write what is of scenarios; returns their number."""
    if not (len(columns["name"]) or may_be_empty):
        raise DataError("no scenario has an agent at its current step, 10; expected agents")
    for kind, bounds in first.items():
        create_dataset(file, f"first/{kind}", np.array(bounds, dtype=np.int64))
    create_dataset(file, "split", columns["split"])
    create_dataset(file, "origin", columns["origin"])
    file.create_dataset("name", data=columns["name"])
    return len(columns["name"])


def write_tracks(file: h5py.File, pieces: Iterable[np.ndarray]) -> None:
    """Write the names of the agents of all scenarios, a piece after the other: there are millions."""
    number = int(file["first/agent"][-1])
    data, done = file.create_dataset("track", (number,), h5py.string_dtype()), 0
    for piece in pieces:
        data[done : done + len(piece)] = piece
        done += len(piece)
