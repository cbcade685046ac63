"""The rules of motion data: vocabularies from tracks, and tokenised scenes in `scenarios.h5`.

Scenes have different numbers of road users and pieces of road. Their rows lie one after the other, and
``first`` of each kind of row says where those of a scene begin.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import create, create_dataset, open_checked, strings
from millrace.errors import ConfigError, DataError
from millrace.systems.base import Progress
from millrace.systems.traffic.tokens import Tokeniser, Tokens, cut, segments_of
from millrace.systems.traffic.tracks import (
    CLASSES,
    Scene,
    TrackFiles,
    find_recordings,
    read_recording,
)
from millrace.systems.traffic.vocabulary import (
    Vocabulary,
    build_motion,
    build_road,
    check_vocabulary,
)

SCHEMA = "millrace.scenarios/2"
VOCABULARY_SCHEMA = "millrace.vocabulary/1"
SPLITS = ("train", "validation", "test")

_TOGETHER = 64  # scenes that are tokenised at once
_CHUNK = 1 << 16  # bytes: a scene is read at a time, not a file
_GOLDEN = 0.6180339887
_SEGMENTS = 200_000  # of a class; more do not change its vocabulary


AGENT_ROWS = {
    "kind": ("kind_A", np.int8),
    "size": ("size_A2", np.float32),
    "token": ("token_AK", np.int16),
    "pose": ("pose_AK3", np.float32),
    "valid": ("valid_AK", np.uint8),
    "true": ("true_AT3", np.float32),
}
ROAD_ROWS = {
    "token": ("token_M", np.int16),
    "type": ("type_M", np.int8),
    "point": ("point_M32", np.float32),
    "next": ("next_M", np.int32),
    "light": ("light_M", np.int32),
}


@dataclass(frozen=True)
class TokenConfig:
    """The ``tokens:`` block of a dataset of tracks."""

    motion: int = 2048
    """Tokens of each class, at most."""
    road: int = 1024
    tolerance: float = 0.05
    """Radius of a disk (m)."""
    margin: float = 80.0
    """The map reaches this far beyond what was seen up to the present (m)."""
    max_agents: int = 64
    train: float = 0.7
    """Share of the scenarios, chosen by their names."""
    validation: float = 0.15
    block: int = 5
    """Scenarios that follow on each other, ``…_007``, and stay in one split: they share road users. The
    last one is left out if the next block is in another split. 1: each is on its own."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.motion, self.road, self.max_agents) < 1 or not self.tolerance > 0:
            raise ConfigError("tokens: expected vocabularies and a tolerance above 0")
        if self.block < 1:
            raise ConfigError(f"tokens.block = {self.block}: expected 1 or more scenarios")
        if max(self.motion, self.road) > np.iinfo(np.int16).max:
            raise ConfigError(f"tokens: at most {np.iinfo(np.int16).max} tokens of a kind")
        if not (0 < self.train < 1 and 0 < self.validation < 1 - self.train):
            raise ConfigError(
                "tokens: expected shares train and validation that leave a test split"
            )

    def block_of(self, name: str) -> tuple[str, int]:
        """Recording and number of the block that a scenario belongs to."""
        recording, line, number = name.rpartition("_")
        if self.block == 1 or not (line and number.isascii() and number.isdecimal()):
            return name, 0
        return recording, int(number) // self.block

    def split(self, name: str) -> int | None:
        """Split of a scenario, index into `SPLITS`; None: it is left out."""
        recording, block = self.block_of(name)
        split = self._split(recording, block)
        is_last = recording != name and (int(name.rpartition("_")[2]) + 1) % self.block == 0
        return None if is_last and self._split(recording, block + 1) != split else split

    def _split(self, recording: str, block: int) -> int:
        # Steps of the golden ratio spread the blocks of each recording evenly over the splits.
        start = zlib.crc32(f"{self.seed}/{recording}".encode()) / 2**32
        share = (start + block * _GOLDEN) % 1
        return int(share >= self.train) + int(share >= self.train + self.validation)


def build_vocabulary(
    source: Path, output: Path, config: TokenConfig, progress: Progress | None = None
) -> Vocabulary:
    """Make the vocabularies from the training scenarios of a directory of tracks.

    Raises
    ------
    DataError
        The files are malformed, or a class does not occur.
    """
    random = np.random.default_rng(config.seed)
    segments: list[list[NDArray[np.float64]]] = [[] for _ in CLASSES]
    pieces = []
    recordings = find_recordings(source)
    for number, files in enumerate(recordings):
        scene = None
        for scene in read_recording(files):
            if config.split(scene.name) == 0:
                for kind, parts in enumerate(segments):
                    parts.append(segments_of(scene, kind))
        if scene is not None:
            pieces.append(cut(scene.road).local_M32)
        if progress is not None:
            progress(number + 1, len(recordings))
    motion, coverage = [], {}
    for kind, name in enumerate(CLASSES):
        found = np.concatenate(segments[kind]) if segments[kind] else np.empty((0, 6, 3))
        if not len(found):
            # A class that does not occur still has the token of standing still.
            found = np.zeros((1, 6, 3))
        if len(found) > _SEGMENTS:
            found = found[random.permutation(len(found))[:_SEGMENTS]]
        tokens, coverage[name] = build_motion(found, kind, config.motion, config.tolerance, random)
        motion.append(tokens)
    road_pieces = np.concatenate(pieces)
    if not len(road_pieces):
        raise DataError(f"{source}: the maps hold no lines; expected lanes and road edges")
    road, coverage["road"] = build_road(road_pieces, config.road, config.tolerance, random)
    vocabulary = Vocabulary(tuple(motion), road, coverage)
    check_vocabulary(vocabulary)
    with create(output) as file:
        file.attrs["schema"] = VOCABULARY_SCHEMA
        file.attrs["config"] = json.dumps(asdict(config), sort_keys=True)
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

    Returns
    -------
    int
        Number of scenes written.

    Raises
    ------
    DataError
        The files are malformed, or a name occurs twice.
    """
    vocabulary = read_vocabulary(vocabulary_file)
    tokeniser = Tokeniser(vocabulary, config.margin, config.max_agents)
    content = hashlib.sha256(vocabulary.digest.encode())
    recordings = find_recordings(source)
    with create(output) as file:
        writer = _Writer(file)
        for number, files in enumerate(recordings):
            for scenes in _batched(read_recording(files)):
                for scene in tokeniser(scenes):
                    split = config.split(scene.name)
                    if split is not None:
                        writer.add(scene, split)
            content.update(_content(files))
            if progress is not None:
                progress(number + 1, len(recordings))
        file.attrs["schema"] = SCHEMA
        file.attrs["config"] = json.dumps(asdict(config), sort_keys=True)
        content.update(file.attrs["config"].encode())
        file.attrs["digest"] = content.hexdigest()[:16]
        vocabulary.write(file.create_group("vocabulary"))
        return writer.finish()


def _batched(scenes: Iterator[Scene]) -> Iterator[list[Scene]]:
    while batch := list(islice(scenes, _TOGETHER)):
        yield batch


def _content(files: TrackFiles) -> bytes:
    content = hashlib.sha256()
    for path in (files.tracks, files.map, files.lights):
        if path is not None:
            content.update(path.read_bytes())
    return content.digest()


class _Writer:
    """Appends scenes to growing datasets, a buffer at a time."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._buffer: dict[str, list[np.ndarray]] = {}
        self._first: dict[str, list[int]] = {"agent": [0], "road": [0], "light": [0]}
        self._names: list[str] = []
        self._tracks: list[str] = []
        self._split: list[int] = []
        self._origin: list[np.ndarray] = []

    def add(self, scene: Tokens, split: int) -> None:
        for kind, columns in (("agent", AGENT_ROWS), ("road", ROAD_ROWS)):
            for name, (attribute, dtype) in columns.items():
                self._append(f"{kind}/{name}", np.asarray(getattr(scene, attribute), dtype=dtype))
        self._append("light/state", scene.light_LK)
        for kind, n in (
            ("agent", len(scene.kind_A)),
            ("road", len(scene.token_M)),
            ("light", len(scene.light_LK)),
        ):
            self._first[kind].append(self._first[kind][-1] + n)
        self._names.append(scene.name)
        self._tracks += scene.track_A
        self._split.append(split)
        self._origin.append(scene.origin_2)
        if len(self._names) % _TOGETHER == 0:
            self._flush()

    def _append(self, name: str, rows: np.ndarray) -> None:
        self._buffer.setdefault(name, []).append(rows)

    def _flush(self) -> None:
        for name, parts in self._buffer.items():
            rows = np.concatenate(parts)
            if name not in self._file:
                shape = (0, *rows.shape[1:])
                row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
                self._file.create_dataset(
                    name,
                    shape,
                    rows.dtype,
                    maxshape=(None, *shape[1:]),
                    chunks=(max(1, _CHUNK // max(1, row_bytes)), *shape[1:]),
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
            raise DataError("no scenario has anybody at its present, step 10; expected road users")
        if len(set(self._names)) < len(self._names):
            twice = next(n for n in self._names if self._names.count(n) > 1)
            raise DataError(f"scenario {twice!r} occurs in two files; expected different names")
        for kind, first in self._first.items():
            create_dataset(self._file, f"first/{kind}", np.array(first, dtype=np.int64))
        create_dataset(self._file, "split", np.array(self._split, dtype=np.int8))
        create_dataset(self._file, "origin", np.array(self._origin))
        self._file.create_dataset("name", data=strings(self._names))
        self._file.create_dataset("track", data=strings(self._tracks))
        return len(self._names)


def read_rows(file: h5py.File, columns: dict[str, Any], kind: str, rows: slice) -> dict[str, Any]:
    """Rows of a kind by name."""
    return {name: file[kind][name][rows] for name in columns}
