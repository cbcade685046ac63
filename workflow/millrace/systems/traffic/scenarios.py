"""The rules `build_vocabulary` and `tokenise`: from a directory of tracks to `scenarios.h5`.

Scenarios have different numbers of agents, road segments and traffic lights. The rows of all scenarios lie
one after the other, and ``first`` of each kind of row says where those of a scenario begin.
"""

import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from millrace.data.account import Account
from millrace.data.hdf5 import create, create_dataset, open_checked, strings
from millrace.data.split import SPLITS
from millrace.errors import DataError
from millrace.systems.base import Progress
from millrace.systems.traffic.geometry import Floats
from millrace.systems.traffic.plausibility import checked
from millrace.systems.traffic.settings import TokenConfig
from millrace.systems.traffic.splits import splits_of
from millrace.systems.traffic.tokens import (
    STRIDE,
    TokenisedScenario,
    Tokeniser,
    motion_segments,
    road_segments,
)
from millrace.systems.traffic.tracks import CLASSES, CURRENT_STEP, find_recordings, read_recording
from millrace.systems.traffic.vocabulary import NAMES, ROAD, Vocabulary, k_disks

SCHEMA = "millrace.scenarios/2"
VOCABULARY_SCHEMA = "millrace.vocabulary/1"

_TOGETHER = 64  # scenarios that are tokenised at once
_CHUNK = 1 << 16  # bytes: a scenario is read at a time, not a file
_GOLDEN = 0.6180339887
_SEGMENTS = 200_000  # of a class; more do not change its vocabulary

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


def build_vocabulary(
    source: Path, output: Path, config: TokenConfig, progress: Progress | None = None
) -> Vocabulary:
    """Build the vocabularies from the training scenarios of a directory of tracks.

    Raises
    ------
    DataError
        The files are malformed or not plausible, no scenario is in the training split, or no map has a
        line.
    """
    random = np.random.default_rng(config.seed)
    # A class that does not occur still has the token of standing still.
    segments: list[list[Floats]] = [[np.empty((0, 6, 3))] for _ in CLASSES] + [[]]
    recordings, split_of = find_recordings(source), splits_of(source, config)
    for number, files in enumerate(recordings):
        trained = None
        for scenario in checked(files.tracks, files.map, read_recording(files)):
            if split_of(scenario.name) == 0:
                trained = scenario
                for kind in range(len(CLASSES)):
                    segments[kind].append(motion_segments(scenario, kind))
        # Scenarios of a recording share its map; one of validation and test scenarios alone stays unseen.
        if trained is not None:
            segments[ROAD].append(road_segments(trained.road).local_M32)
        if progress is not None:
            progress(number + 1, len(recordings))
    if not segments[ROAD]:
        raise DataError(
            f"{source}: no scenario is in the training split; expected more scenarios, or a larger "
            "tokens.train"
        )
    if not sum(map(len, segments[ROAD])):
        raise DataError(f"{source}: the maps hold no lines; expected lanes and road edges")
    tokens, coverage = [], {}
    for kind, name in enumerate(NAMES):
        found, size = np.concatenate(segments[kind]), config.motion
        if kind == ROAD:
            size = config.road
        elif not len(found):
            found = np.zeros((1, 6, 3))
        elif len(found) > _SEGMENTS:
            found = found[random.permutation(len(found))[:_SEGMENTS]]
        made, coverage[name] = k_disks(found, kind, size, config.tolerance, random)
        tokens.append(made)
    vocabulary = Vocabulary(tuple(tokens[:ROAD]), tokens[ROAD], coverage)
    vocabulary.check()
    with create(output) as file:
        file.attrs["schema"] = VOCABULARY_SCHEMA
        file.attrs["config"] = json.dumps(config.written(), sort_keys=True)
        vocabulary.write(file.create_group("vocabulary"))
    return vocabulary


def read_vocabulary(path: Path) -> Vocabulary:
    """Read what `build_vocabulary` wrote."""
    with open_checked(path, VOCABULARY_SCHEMA) as file:
        return Vocabulary.read(file["vocabulary"])


def tokenise(
    source: Path,
    vocabulary_file: Path,
    output: Path,
    config: TokenConfig,
    progress: Progress | None = None,
) -> int:
    """Tokenise the scenarios of a directory of tracks, without those between blocks of different splits.

    `samples.json` beside ``output`` says what was read, kept, and left out for which reason.

    Returns
    -------
    int
        Number of scenarios written.

    Raises
    ------
    DataError
        The files are malformed, two scenarios have one name, or one is in no official split.
    """
    vocabulary = read_vocabulary(vocabulary_file)
    tokeniser = Tokeniser(vocabulary, config.margin, config.max_agents)
    content = hashlib.sha256(vocabulary.digest.encode())
    recordings, split_of = find_recordings(source), splits_of(source, config)
    account, places, appeared = Account(), dict[str, Path](), 0
    official = config.splits == "official"
    if not official and (source / "splits.csv").is_file():
        print(
            "splits: by the names of scenarios, but the data set says what is training, validation and "
            "test; set tokens.splits to official to use that"
        )
    with create(output) as file:
        writer = _Writer(file)
        for number, files in enumerate(recordings):
            scenarios = read_recording(files, account)
            while together := list(islice(scenarios, _TOGETHER)):
                for one in together:
                    if one.name in places:
                        raise DataError(
                            f"{files.tracks}: scenario {one.name!r} is in {places[one.name]}, too; "
                            "expected different names"
                        )
                    places[one.name] = files.tracks
                for scenario in tokeniser(together, account):
                    split = split_of(scenario.name)
                    if split is None:
                        account.leave_out("scenarios", "between blocks of different splits")
                    else:
                        account.keep("scenarios")
                        if official:
                            account.keep(f"scenarios for {SPLITS[split]}")
                        writer.add(scenario, split)
                        late = np.isnan(scenario.true_AT3[:, CURRENT_STEP - STRIDE, 0])
                        appeared += int(late.sum())
            of_recording = hashlib.sha256()
            for path in (files.tracks, files.map, files.lights):
                if path is not None:
                    of_recording.update(path.read_bytes())
            content.update(of_recording.digest())
            if progress is not None:
                progress(number + 1, len(recordings))
        file.attrs["schema"] = SCHEMA
        file.attrs["config"] = json.dumps(config.written(), sort_keys=True)
        content.update(file.attrs["config"].encode())
        if official:
            content.update((source / "splits.csv").read_bytes())
        if appeared:  # earlier versions left them out: these are other samples
            content.update(b"agents without a past")
        file.attrs["digest"] = content.hexdigest()[:16]
        vocabulary.write(file.create_group("vocabulary"))
        written = writer.finish()
    if appeared:
        print(
            f"agents: {appeared} were not observed half a second before step {CURRENT_STEP}; their past "
            "is straight, at the velocity of their first observation"
        )
    account.write(output.with_name("samples.json"))
    return written


class _Writer:
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
        for kind, columns in ROWS.items():
            for name, (attribute, dtype) in columns.items():
                rows = np.asarray(getattr(scenario, attribute), dtype=dtype)
                self._buffer.setdefault(f"{kind}/{name}", []).append(rows)
            self._first[kind].append(self._first[kind][-1] + len(rows))
        self._names.append(scenario.name)
        self._tracks += scenario.track_A
        self._split.append(split)
        self._origin.append(scenario.origin_2)
        if len(self._names) % _TOGETHER == 0:
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
                    fletcher32=True,
                )
            dataset = self._file[name]
            n = len(dataset)
            dataset.resize(n + len(rows), axis=0)
            dataset[n:] = rows
        self._buffer = {}

    def finish(self) -> int:
        self._flush()
        if not self._names:
            raise DataError("no scenario has an agent at its current step, 10; expected agents")
        for kind, first in self._first.items():
            create_dataset(self._file, f"first/{kind}", np.array(first, dtype=np.int64))
        create_dataset(self._file, "split", np.array(self._split, dtype=np.int8))
        create_dataset(self._file, "origin", np.array(self._origin))
        self._file.create_dataset("name", data=strings(self._names))
        self._file.create_dataset("track", data=strings(self._tracks))
        return len(self._names)
