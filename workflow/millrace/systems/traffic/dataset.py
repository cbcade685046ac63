"""Batches of tokenised scenarios: the samples that SMART is trained on.

Scenarios differ several times in size. Those of a split are sorted by their cost and cut into buckets. A
bucket is a group of the engine, so that all scenarios of a batch are padded to the size of its largest.
Padding has no effect on any result.

The states of traffic lights are known up to the current step; later token steps get the state at that step.

Shape suffixes: B scenarios, A agents, K motion tokens of an agent, M road segments, L traffic lights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from millrace.data.device import to_device
from millrace.data.hdf5 import open_checked, reading
from millrace.data.normalisation import Normalisation
from millrace.data.recipe import Outline
from millrace.data.shared import shared
from millrace.data.split import SPLITS
from millrace.errors import ConfigError
from millrace.systems.traffic.scenario_file import OF_SCENARIO, ROWS, SCHEMA
from millrace.systems.traffic.settings import ScenarioConfig, TokenConfig
from millrace.systems.traffic.tokens import HISTORY, TOKENS
from millrace.systems.traffic.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class VocabularyBinding:
    """Stands for the statistics of other datasets: which vocabulary a model's token numbers refer to."""

    digest: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the receipt."""
        return {"vocabulary": self.digest}


@dataclass(frozen=True)
class ScenarioBatch:
    """Scenarios of one bucket; positions are in metres relative to the origin of each scenario."""

    kind_BA: Tensor
    """int64: class of the agent."""
    size_BA2: Tensor
    """Length and width (m)."""
    token_BAK: Tensor
    """int64"""
    pose_BAK3: Tensor
    """Poses at the ends of the tokens: x, y (m), heading (rad)."""
    valid_BAK: Tensor
    """bool: where there is a token."""
    road_token_BM: Tensor
    road_type_BM: Tensor
    """int64: index into `LINE_TYPES`."""
    road_pose_BM3: Tensor
    """Begin of the road segment, and direction of its chord."""
    road_valid_BM: Tensor
    """bool: False for padding."""
    road_next_BM: Tensor
    """int64: the segment that continues the polyline, -1 at its end."""
    road_masked_BM: Tensor
    """bool: every third segment of a polyline, masked where the next road token is predicted."""
    light_BMK: Tensor
    """int64: state at each token's end, as far as it is known at the current step."""
    y_KBTV: Tensor
    """Motion to the end of each next token, in the frame of the token before: x, y (m), cosine and sine of
    the turn; [A, B, 17, 4], 0 where there is no token. (The name is the engine's.)"""
    weight_B: Tensor
    scenario_B: Tensor
    """int64: number of the scenario in the file."""


class ScenarioDataset:
    """Scenarios of `scenarios.h5`.

    Parameters
    ----------
    path : Path
        File of the rule ``tokenise``.
    config : ScenarioConfig, optional
    device : torch.device, optional
        Device of the batches; by default the CPU.
    cache_bytes : int
        Fewer scenarios are read once and kept in memory; others are read one by one.
    statistics : Normalisation, optional
        Not used: nothing is normalised.
    """

    config_type = ScenarioConfig
    roles = ("scenarios",)
    weighted_variable: str | None = None
    """``train.loss.variance_weight`` has no meaning for tokens."""

    def __init__(
        self,
        path: Path,
        config: ScenarioConfig | None = None,
        device: torch.device | None = None,
        cache_bytes: int = 8 << 30,
        statistics: Normalisation | None = None,
    ) -> None:
        del statistics
        self.path, self.config = Path(path), config or ScenarioConfig()
        self.device = device or torch.device("cpu")
        with open_checked(self.path, SCHEMA) as file:
            self.vocabulary = Vocabulary.read(file["vocabulary"])
            self.digest_of_tokens = str(file.attrs["digest"])
            self._first = {kind: file["first"][kind][()] for kind in ROWS}
            self.split = file["split"][()]
            self.names = [name.decode() for name in file["name"][()]]
            tokens = TokenConfig(**json.loads(file.attrs["config"]))
            size = sum(file[kind][name].nbytes for kind in ROWS for name in ROWS[kind])
        blocks = np.array([tokens.block_of(name) for name in self.names], dtype=str)
        self.block = np.unique(blocks, axis=0, return_inverse=True)[1].ravel()
        """Number of the block of each scenario, int64[N]; see `TokenConfig.block`."""
        self.normalisation = VocabularyBinding(self.vocabulary.digest)
        self.preparation: Mapping[str, Any] | None = None
        self._rows: dict[str, dict[str, np.ndarray]] | None = None
        self._keep = size <= cache_bytes
        self._file: h5py.File | None = None
        self._size = {kind: np.diff(first) for kind, first in self._first.items()}
        # In any unit: agents attend at every token, the map is encoded once.
        self._cost = self._size["agent"] * TOKENS + self._size["road"] / 4
        self._buckets: dict[str, list[np.ndarray]] = {}
        for number, name in enumerate(SPLITS):
            scenarios = np.flatnonzero(self.split == number)
            order = scenarios[np.argsort(self._cost[scenarios], kind="stable")]
            self._buckets[name] = np.array_split(order, self.config.buckets)

    def recipe(self) -> dict[str, Outline]:
        """What is needed to make samples of named arrays, see `millrace.data.recipe`."""
        rows = [*(f"{kind}/*" for kind in ROWS), *OF_SCENARIO, "first/*"]
        return {"scenarios": Outline(self.path, rows)}

    @property
    def definition(self) -> dict[str, object]:
        """What defines the samples; it enters the run hash."""
        parts = {"digest": self.digest_of_tokens, "vocabulary": self.vocabulary.digest}
        return {**parts, **self.config.essentials()}

    def groups(self, split: str) -> np.ndarray:
        """Number of scenarios in each bucket, int64[G]."""
        return np.array([len(scenarios) for scenarios in self._buckets_of(split)])

    @property
    def group_costs(self) -> np.ndarray:
        """Cost of a scenario of each training bucket, in any unit."""
        return np.array([self._cost[b].max(initial=0.0) for b in self._buckets_of("train")])

    def scenarios(self, split: str) -> np.ndarray:
        """Numbers of the scenarios of a split, in the order of the buckets."""
        return np.concatenate(self._buckets_of(split))

    def batch(
        self, split: str, group: int, index: np.ndarray, weight: Sequence[float] | None = None
    ) -> ScenarioBatch:
        """Gather the scenarios at places ``index``, int64[B], of a bucket; ``weight`` is 1 by default."""
        bucket = self._buckets_of(split)[group]
        agents, segments = (int(self._size[kind][bucket].max()) for kind in ("agent", "road"))
        return self.gather(bucket[index], agents, segments, weight)

    def gather(
        self,
        scenarios: np.ndarray,
        agents: int = 1,
        segments: int = 1,
        weight: Sequence[float] | None = None,
    ) -> ScenarioBatch:
        """Gather scenarios by their numbers, padded to at least ``agents`` and road ``segments``."""
        scenarios = np.asarray(scenarios)
        n, maps = len(scenarios), scenarios
        if self.config.shuffle_map:
            maps, segments = self.shuffled(scenarios), 1
        agent = self._padded("agent", scenarios, agents)
        road = self._padded("road", maps, segments)
        road["next"][~road["exists"]] = road["light"][~road["exists"]] = -1
        light_BMK = []
        for scenario, light_M in zip(maps, road["light"], strict=True):
            known_LK = self.rows("light", scenario)["state"].astype(np.int64)
            known_LK[:, HISTORY:] = known_LK[:, HISTORY - 1 : HISTORY]
            # A segment without a light, -1, takes the last row.
            light_BMK.append(np.pad(known_LK, ((0, 1), (0, 0)))[light_M])
        begin, chord = road["point"][:, :, 0], road["point"][:, :, 2] - road["point"][:, :, 0]
        heading = np.arctan2(chord[..., 1], chord[..., 0])
        return ScenarioBatch(
            kind_BA=self._tensor(agent["kind"], np.int64),
            size_BA2=self._tensor(agent["size"], np.float32),
            token_BAK=self._tensor(agent["token"], np.int64),
            pose_BAK3=self._tensor(agent["pose"], np.float32),
            valid_BAK=self._tensor(agent["valid"], bool),
            road_token_BM=self._tensor(road["token"], np.int64),
            road_type_BM=self._tensor(road["type"], np.int64),
            road_pose_BM3=self._tensor(np.dstack([begin, heading]), np.float32),
            road_valid_BM=self._tensor(road["exists"], bool),
            road_next_BM=self._tensor(road["next"], np.int64),
            road_masked_BM=self._tensor(_masked(road["next"]) & road["exists"], bool),
            light_BMK=self._tensor(light_BMK, np.int64),
            y_KBTV=self._tensor(self._motion(agent).swapaxes(0, 1), np.float32),
            weight_B=self._tensor(np.ones(n) if weight is None else weight, np.float32),
            scenario_B=self._tensor(scenarios, np.int64),
        )

    def with_shuffled_maps(self) -> "ScenarioDataset":
        """The same scenarios, each on the map of another one."""
        return ScenarioDataset(self.path, self.config.replaced(shuffle_map=True), self.device)

    def rows(self, kind: str, scenario: int) -> dict[str, np.ndarray]:
        """Rows of a scenario by column, for one of the kinds of `ROWS`."""
        part = slice(*self._first[kind][scenario : scenario + 2].tolist())
        if not self._keep:
            with reading(self.path):
                if self._file is None:
                    self._file = h5py.File(self.path, "r")
                return {name: self._file[kind][name][part] for name in ROWS[kind]}
        if self._rows is None:
            read = shared(["scenarios", self.digest_of_tokens], self._read)
            self._rows = {
                kind: {name: values.numpy() for name, values in columns.items()}
                for kind, columns in read.items()
            }
        return {name: values[part] for name, values in self._rows[kind].items()}

    def _read(self) -> dict[str, dict[str, Tensor]]:
        with open_checked(self.path, SCHEMA) as file:
            return {
                kind: {name: torch.from_numpy(file[kind][name][()]) for name in columns}
                for kind, columns in ROWS.items()
            }

    def _padded(self, kind: str, scenarios: np.ndarray, least: int) -> dict[str, np.ndarray]:
        """Rows of scenarios, [B, rows, ...] by column, padded with zeros; ``exists`` where there is one."""
        count = self._size[kind][scenarios]
        length = max(least, int(count.max()))
        found = {"exists": np.arange(length) < count[:, None]}
        for b, scenario in enumerate(scenarios):
            for name, values in self.rows(kind, scenario).items():
                if not b:
                    shape = (len(scenarios), length, *values.shape[1:])
                    found[name] = np.zeros(shape, values.dtype)
                found[name][b, : len(values)] = values
        return found

    def most(self, kind: str) -> int:
        """The most agents, of the kind ``agent``, or road segments, ``road``, that a scenario has."""
        return int(self._size[kind].max())

    def shuffled(self, scenarios: np.ndarray) -> np.ndarray:
        """For each scenario another one, drawn at random, a quarter of the file away or more.

        That is of another place, if the file holds four or more of about equal size one after the other.
        At random, because a model that trains on wrong maps must not learn which belongs to which.
        """
        n = len(self.names)
        least = max(1, n // 4)
        away = np.random.default_rng(n).integers(least, max(least + 1, n - least + 1), n)
        return (scenarios + away[scenarios]) % n

    def _motion(self, agent: Mapping[str, np.ndarray]) -> np.ndarray:
        """Motion of each token but the first, [B, A, K - 1, 4]; see `ScenarioBatch.y_KBTV`."""
        end = np.zeros((*agent["token"].shape, 3))
        for kind, tokens in enumerate(self.vocabulary.motion):
            own = agent["kind"] == kind
            end[own] = tokens[np.minimum(agent["token"][own], len(tokens) - 1), -1]
        change = np.concatenate([end[..., :2], np.cos(end[..., 2:]), np.sin(end[..., 2:])], axis=-1)
        valid = agent["valid"].astype(bool)
        return np.where((valid[..., 1:] & valid[..., :-1])[..., None], change[:, :, 1:], 0.0)

    def _buckets_of(self, split: str) -> list[np.ndarray]:
        buckets = self._buckets[split]
        if not sum(map(len, buckets)):
            raise ConfigError(
                f"{self.path}: no scenarios in split {split!r}; give the dataset more"
            )
        return buckets

    def _tensor(self, array: Any, dtype: Any) -> Tensor:
        return to_device(np.asarray(array), self.device, dtype)


def _masked(next_BM: np.ndarray) -> np.ndarray:
    """Third, sixth, ... segment of each polyline."""
    position = np.zeros(next_BM.shape, dtype=np.int64)
    for m in range(1, next_BM.shape[1]):
        follows = next_BM[:, m - 1] == m
        position[:, m] = np.where(follows, position[:, m - 1] + 1, 0)
    return position % 3 == 2
