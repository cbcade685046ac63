"""Tokenised scenes as batches: the samples that SMART trains on.

Scenes differ several times in size. Those of a split are sorted by what they cost and cut into buckets; a
bucket is a group of the engine, so that all scenes of a batch are padded to the size of its largest. What
a padded row holds cannot reach a result.

Lights are known up to the present. Later moments see the state at the present.

Shape suffixes: B scenes, A road users, K tokens of a road user, M pieces of road, V tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from millrace.config import essentials
from millrace.data.hdf5 import open_checked
from millrace.data.normalisation import Normalisation
from millrace.errors import ConfigError
from millrace.systems.traffic.scenarios import (
    AGENT_ROWS,
    ROAD_ROWS,
    SCHEMA,
    SPLITS,
    TokenConfig,
    read_rows,
)
from millrace.systems.traffic.tokens import HISTORY, TOKENS
from millrace.systems.traffic.vocabulary import Vocabulary

CACHE_BYTES = 8 << 30
"""Files below this are read once and kept."""


@dataclass(frozen=True)
class ScenarioConfig:
    """What a batch holds; the ``data:`` block of an experiment on motion."""

    buckets: int = 4
    """Groups of scenes of about the same cost."""
    shuffle_map: bool = False
    """Give each scene the map of another: what a model that ignores the map does as well with."""

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise ConfigError(f"data.buckets = {self.buckets}: expected 1 or more")


@dataclass(frozen=True, eq=False)
class VocabularyBinding:
    """What a model has to know of the data it was trained on: which tokens its numbers mean."""

    digest: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the receipt."""
        return {"vocabulary": self.digest}


@dataclass(frozen=True)
class ScenarioBatch:
    """Scenes of one bucket, in metres relative to their origins."""

    kind_BA: Tensor
    """int64: class."""
    size_BA2: Tensor
    token_BAK: Tensor
    """int64"""
    pose_BAK3: Tensor
    """At the ends of the tokens."""
    valid_BAK: Tensor
    """bool"""
    road_token_BM: Tensor
    road_type_BM: Tensor
    road_pose_BM3: Tensor
    """Begin, and direction."""
    road_valid_BM: Tensor
    road_next_BM: Tensor
    """int64: the piece that continues the line, -1 at its end."""
    road_hidden_BM: Tensor
    """bool: every third piece of a line, hidden where the next piece of road is predicted."""
    light_BMK: Tensor
    """int64: state at each token's end, as far as it is known at the present."""
    y_KBTV: Tensor
    """Where the road users are after each next token, in the frames of the tokens before: x, y, cos, sin of
    the turn; [A, B, 17, 4], 0 where there is none. (The engine's name: points, batch, time, variables.)"""
    weight_B: Tensor
    scene_B: Tensor
    """int64: number of the scene in the file."""


class ScenarioDataset:
    """Scenes of `scenarios.h5`.

    Parameters
    ----------
    path : Path
        File of the rule ``tokenise``.
    config : ScenarioConfig
    device : torch.device, optional
        Where batches are made.
    cache_bytes : int
        Files larger than this are read scene by scene.
    statistics : Normalisation, optional
        Not needed: metres are metres; what has to agree is the vocabulary.
    """

    config_type = ScenarioConfig
    roles = ("scenarios",)

    def __init__(
        self,
        path: Path,
        config: ScenarioConfig | None = None,
        device: torch.device | None = None,
        cache_bytes: int = CACHE_BYTES,
        statistics: Normalisation | None = None,
    ) -> None:
        del statistics
        self.path, self.config = Path(path), config or ScenarioConfig()
        self.device = device or torch.device("cpu")
        with open_checked(self.path, SCHEMA) as file:
            self.vocabulary = Vocabulary.read(file["vocabulary"])
            self.digest = str(file.attrs["digest"])
            self._first = {kind: file["first"][kind][()] for kind in ("agent", "road", "light")}
            self.split = file["split"][()]
            self.names = [name.decode() for name in file["name"][()]]
            self.origin = file["origin"][()]
            tokens = TokenConfig(**json.loads(file.attrs["config"]))
        blocks = [tokens.block_of(name) for name in self.names]
        self.block = np.unique(np.array(blocks, dtype=str), axis=0, return_inverse=True)[1].ravel()
        """Number of the block of each scene, int64[N]: scenes of a block follow on each other."""
        self.normalisation = VocabularyBinding(self.vocabulary.digest)
        self.preparation: Mapping[str, Any] | None = None
        self._rows: dict[str, dict[str, np.ndarray]] | None = None
        self._keep = self.path.stat().st_size <= cache_bytes
        self._buckets = {name: self._cut(number) for number, name in enumerate(SPLITS)}

    @property
    def definition(self) -> dict[str, object]:
        """What the samples are: part of what decides a run's weights."""
        parts = {"digest": self.digest, "vocabulary": self.vocabulary.digest}
        return {**parts, **essentials(self.config)}

    @property
    def core_nodes(self) -> list[np.ndarray]:
        """Scenes of each training bucket."""
        return self._buckets["train"]

    def groups(self, split: str) -> np.ndarray:
        """Scenes of each bucket, int64[G]."""
        return np.array([len(scenes) for scenes in self._bucket_list(split)])

    @property
    def group_costs(self) -> np.ndarray:
        """What a scene of each training bucket costs, in any unit."""
        parts = self._bucket_list("train")
        return np.array([self._cost(part).max() if len(part) else 0.0 for part in parts])

    def scenes(self, split: str) -> np.ndarray:
        """Numbers of the scenes of a split, in the order of the buckets."""
        return np.concatenate(self._bucket_list(split))

    def batch(
        self, split: str, group: int, index: np.ndarray, weight: Sequence[float] | None = None
    ) -> ScenarioBatch:
        """Gather scenes of a bucket.

        Parameters
        ----------
        split : {"train", "validation", "test"}
        group : int
        index : ndarray
            int64[B], which scenes of the bucket.
        weight : sequence of float, optional
            B weights, 1 each by default.
        """
        bucket = self._bucket_list(split)[group]
        sizes = [int(self._size(kind)[bucket].max()) for kind in ("agent", "road")]
        return self.gather(bucket[index], sizes[0], sizes[1], weight)

    def gather(
        self,
        scenes: np.ndarray,
        agents: int | None = None,
        pieces: int | None = None,
        weight: Sequence[float] | None = None,
    ) -> ScenarioBatch:
        """Gather scenes by their numbers, padded to ``agents`` and ``pieces`` (by default as needed)."""
        scenes = np.asarray(scenes)
        road_of = self._other_maps(scenes) if self.config.shuffle_map else scenes
        if self.config.shuffle_map:
            pieces = None
        n = len(scenes)
        agents = agents or int(self._size("agent")[scenes].max())
        pieces = pieces or max(1, int(self._size("road")[road_of].max()))
        agent: dict[str, np.ndarray] = {}
        road: dict[str, np.ndarray] = {}
        light = np.zeros((n, pieces, TOKENS), dtype=np.int64)
        for b in range(n):
            rows = self.rows("agent", int(scenes[b]))
            _pad(agent, rows, b, n, agents)
            rows = self.rows("road", int(road_of[b]))
            _pad(road, rows, b, n, pieces)
            light[b, : len(rows["light"])] = self._lights(int(road_of[b]), rows["light"])
        road["next"][~_present(road, pieces)] = -1
        chord = road["point"][:, :, 2] - road["point"][:, :, 0]
        heading = np.arctan2(chord[..., 1], chord[..., 0])
        valid = agent["valid"].astype(bool)
        weights = np.ones(n) if weight is None else np.asarray(weight)
        return ScenarioBatch(
            kind_BA=self._tensor(agent["kind"], np.int64),
            size_BA2=self._tensor(agent["size"], np.float32),
            token_BAK=self._tensor(agent["token"], np.int64),
            pose_BAK3=self._tensor(agent["pose"], np.float32),
            valid_BAK=self._tensor(valid, bool),
            road_token_BM=self._tensor(road["token"], np.int64),
            road_type_BM=self._tensor(road["type"], np.int64),
            road_pose_BM3=self._tensor(
                np.concatenate([road["point"][:, :, 0], heading[..., None]], axis=2), np.float32
            ),
            road_valid_BM=self._tensor(_present(road, pieces), bool),
            road_next_BM=self._tensor(road["next"], np.int64),
            road_hidden_BM=self._tensor(_hidden(road["next"], _present(road, pieces)), bool),
            light_BMK=self._tensor(light, np.int64),
            y_KBTV=self._tensor(self._next(agent, valid).swapaxes(0, 1), np.float32),
            weight_B=self._tensor(weights, np.float32),
            scene_B=self._tensor(scenes, np.int64),
        )

    def with_other_maps(self) -> "ScenarioDataset":
        """The same scenes, each on the map of another."""
        config = replace(self.config, shuffle_map=True)
        return ScenarioDataset(self.path, config, self.device)

    def rows(self, kind: str, scene: int) -> dict[str, np.ndarray]:
        """Rows of the road users (``agent``) or pieces of road (``road``) of a scene."""
        columns = AGENT_ROWS if kind == "agent" else ROAD_ROWS
        part = slice(int(self._first[kind][scene]), int(self._first[kind][scene + 1]))
        if self._keep:
            self._rows = self._rows or self._read_all()
            return {name: self._rows[kind][name][part] for name in columns}
        with open_checked(self.path, SCHEMA) as file:
            return read_rows(file, columns, kind, part)

    def _read_all(self) -> dict[str, dict[str, np.ndarray]]:
        with open_checked(self.path, SCHEMA) as file:
            rows = {
                kind: read_rows(file, columns, kind, slice(None))
                for kind, columns in (("agent", AGENT_ROWS), ("road", ROAD_ROWS))
            }
            return rows | {"light": {"state": file["light"]["state"][()]}}

    def _lights(self, scene: int, row_M: np.ndarray) -> np.ndarray:
        """State at the ends of the tokens for each piece; after the present that of the present."""
        part = slice(int(self._first["light"][scene]), int(self._first["light"][scene + 1]))
        if self._keep:
            assert self._rows is not None
            state_LK = self._rows["light"]["state"][part]
        else:
            with open_checked(self.path, SCHEMA) as file:
                state_LK = file["light"]["state"][part]
        known_LK = state_LK.astype(np.int64).copy()
        known_LK[:, HISTORY:] = known_LK[:, HISTORY - 1 : HISTORY]
        dark = np.zeros((1, TOKENS), dtype=np.int64)
        return np.concatenate([known_LK, dark])[row_M]  # -1 takes the last row

    def _other_maps(self, scenes: np.ndarray) -> np.ndarray:
        """The map of a scene drawn at random, a quarter of the file away or more.

        That is of another place, if the file holds four or more of about equal size one after the other.
        At random, because a model that trains on wrong maps must not learn which belongs to which.
        """
        n = len(self.names)
        least = max(1, n // 4)
        away = np.random.default_rng(n).integers(least, max(least + 1, n - least + 1), n)
        return (scenes + away[scenes]) % n

    def _next(self, agent: Mapping[str, np.ndarray], valid: np.ndarray) -> np.ndarray:
        end = np.zeros((*agent["token"].shape, 3))
        for kind, tokens in enumerate(self.vocabulary.motion):
            own = agent["kind"] == kind
            end[own] = tokens[np.minimum(agent["token"][own], len(tokens) - 1), -1]
        change = np.concatenate([end[..., :2], np.cos(end[..., 2:]), np.sin(end[..., 2:])], axis=-1)
        return np.where((valid[..., 1:] & valid[..., :-1])[..., None], change[:, :, 1:], 0.0)

    def _size(self, kind: str) -> np.ndarray:
        return np.diff(self._first[kind])

    def _cut(self, split: int) -> list[np.ndarray]:
        scenes = np.flatnonzero(self.split == split)
        order = scenes[np.argsort(self._cost(scenes), kind="stable")]
        return np.array_split(order, self.config.buckets)

    def _cost(self, scenes: np.ndarray) -> np.ndarray:
        """Of each scene, in any unit: road users attend at every token, the map is encoded once."""
        return self._size("agent")[scenes] * TOKENS + self._size("road")[scenes] / 4

    def _bucket_list(self, split: str) -> list[np.ndarray]:
        buckets = self._buckets[split]
        if not sum(map(len, buckets)):
            raise ConfigError(
                f"split {split!r} of {self.path} has no scenes: give the dataset more scenarios"
            )
        return buckets

    def _tensor(self, array: np.ndarray, dtype: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype)).to(self.device)


def _pad(
    into: dict[str, np.ndarray], rows: Mapping[str, np.ndarray], b: int, n: int, length: int
) -> None:
    for name, values in rows.items():
        if name not in into:
            into[name] = np.zeros((n, length, *values.shape[1:]), dtype=values.dtype)
        into[name][b, : len(values)] = values
    into.setdefault("count", np.zeros(n, dtype=np.int64))[b] = len(next(iter(rows.values())))


def _present(road: Mapping[str, np.ndarray], length: int) -> np.ndarray:
    return np.arange(length) < road["count"][:, None]


def _hidden(next_BM: np.ndarray, present_BM: np.ndarray) -> np.ndarray:
    """Third, sixth, ... piece of each line."""
    position = np.zeros(next_BM.shape, dtype=np.int64)
    for m in range(1, next_BM.shape[1]):
        follows = next_BM[:, m - 1] == m
        position[:, m] = np.where(follows, position[:, m - 1] + 1, 0)
    return (position % 3 == 2) & present_BM
