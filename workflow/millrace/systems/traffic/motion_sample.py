"""Which segments of motion and of road vocabularies are made of: a bounded number, however many there are.

Of many training scenarios those with the smallest hashes of their names are taken, of which each has the
same chance, and of each so many segments that all together are bounded. What is taken depends neither on
the order of the files nor on how they are divided among jobs.
"""

import hashlib
import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import create_dataset, strings
from millrace.systems.traffic.geometry import Floats
from millrace.systems.traffic.tokens import motion_segments, road_segments
from millrace.systems.traffic.tracks import CLASSES, Polyline, Scenario

MOST_SCENARIOS = 2_000
"""Scenarios that are taken."""
MOST_SEGMENTS = 800_000
"""Segments of a class of agents, and of maps, that are taken."""
THIN_AFTER = 1.25
"""Growth of the number of scenarios after which segments that are too many are dropped."""
_TOGETHER = 64
"""Scenarios that are read at once."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of a scenario or a map in their order, of which some can be dropped."""

    value_N: Floats
    rank_N: NDArray[np.int64]
    """Those of the lowest ranks stay."""

    @classmethod
    def of(cls, value_N: Floats, key: int) -> "Segments":
        """All segments; the ranks are random."""
        return cls(value_N, np.random.default_rng(key).permutation(len(value_N)))

    def copy(self) -> "Segments":
        """The same, not as views of larger arrays."""
        return Segments(self.value_N.copy(), self.rank_N.copy())

    def first(self, most: int) -> "Segments":
        """So many of them."""
        if len(self.value_N) <= most:
            return self
        kept = self.rank_N < most
        return Segments(self.value_N[kept], self.rank_N[kept])


Place = tuple[int, int, int]
"""File, recording in it, and scenario in the file."""


class MotionSample:
    """Segments of the training scenarios that were added, as far as they are taken."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._largest: list[tuple[int, str]] = []
        """Heap of the negative hashes and the names of what is taken."""
        self._motion: dict[str, tuple[Place, list[Segments]]] = {}
        self._road: dict[tuple[int, int], Segments] = {}
        self._place: Place = (-1, 0, 0)
        self._map: tuple[Polyline, ...] = ()
        self._thinned = 1

    def __len__(self) -> int:
        """Scenarios that are taken."""
        return len(self._motion)

    def wants(self, name: str) -> bool:
        """Whether a scenario would be taken, as far as is known; others need not be read."""
        return len(self) < MOST_SCENARIOS or self._hash(name) < -self._largest[0][0]

    def add(self, file: int, scenario: Scenario) -> None:
        """Take a training scenario, if it is one of those; files and what they hold come in their order."""
        last, recording, number = self._place
        if file != last:
            recording, number = 0, 0
        elif scenario.road is not self._map:
            recording += 1
        self._place, self._map = (file, recording, number + 1), scenario.road
        if scenario.name in self._motion or not self.wants(scenario.name):
            return
        key, most = self._hash(scenario.name), self._most(len(self) + 1)
        motion = [motion_segments(scenario, kind) for kind in range(len(CLASSES))]
        kept = [Segments.of(one, key).first(most) for one in motion]
        self._motion[scenario.name] = self._place, kept
        if (file, recording) not in self._road:
            found = road_segments(scenario.road).local_M32
            self._road[file, recording] = Segments.of(found, self._seed).first(most)
        heapq.heappush(self._largest, (-key, scenario.name))
        if len(self) > MOST_SCENARIOS:
            self._drop()
        if len(self) >= THIN_AFTER * self._thinned:
            self._thin()

    def _drop(self) -> None:
        _, name = heapq.heappop(self._largest)
        of = self._motion.pop(name)[0][:2]
        if all(place[:2] != of for place, _ in self._motion.values()):
            del self._road[of]

    def _thin(self) -> None:
        """Drop segments that will not be taken, whatever follows."""
        self._thinned = max(1, len(self))
        most = self._most(len(self))
        for name, (place, motion) in self._motion.items():
            self._motion[name] = place, [one.first(most) for one in motion]
        self._road = {place: one.first(most) for place, one in self._road.items()}

    @staticmethod
    def _most(scenarios: int) -> int:
        """Segments of a class, or of a map, of each scenario: never more than with fewer scenarios."""
        return MOST_SEGMENTS // min(MOST_SCENARIOS, max(1, scenarios))

    def segments(self) -> list[list[Floats]]:
        """All that is taken, in the order of the files, for each of `vocabulary.NAMES`: no copies."""
        self._thin()
        taken = sorted(self._motion.values(), key=lambda one: one[0])
        # A class that does not occur still has the token of standing still.
        found = [
            [np.empty((0, 6, 3)), *(motion[kind].value_N for _, motion in taken)]
            for kind in range(len(CLASSES))
        ]
        roads = [self._road[place].value_N for place in sorted(self._road)]
        return [*found, [np.empty((0, 3, 2)), *roads]]

    def merge(self, group: h5py.Group, files: Sequence[int]) -> None:
        """Take what `write` stored of other files, whose numbers among all are ``files``.

        No more of it is in memory than what is taken.
        """
        names = [name.decode() for name in group["name"][()]]
        places = [(files[file], *rest) for file, *rest in group["place"][()].tolist()]
        roads = group["road_place"][()].tolist()
        road_of = {(files[file], recording): n for n, (file, recording) in enumerate(roads)}
        for first in range(0, len(names), _TOGETHER):
            block = range(first, min(first + _TOGETHER, len(names)))
            if not any(self.wants(names[n]) for n in block):
                continue
            motion = zip(*(_read(group[kind], block) for kind in CLASSES), strict=True)
            for n, segments in zip(block, motion, strict=True):
                if names[n] in self._motion or not self.wants(names[n]):
                    continue
                of = places[n][:2]
                self._motion[names[n]] = places[n], [one.copy() for one in segments]
                if of not in self._road:
                    [road] = _read(group["road"], range(road_of[of], road_of[of] + 1))
                    self._road[of] = road
                heapq.heappush(self._largest, (-self._hash(names[n]), names[n]))
                if len(self) > MOST_SCENARIOS:
                    self._drop()
        self._thin()

    def write(self, group: h5py.Group) -> None:
        """Store what is taken in a group of an HDF5 file."""
        self._thin()
        taken = sorted(self._motion.items(), key=lambda one: one[1][0])
        group["name"] = strings([name for name, _ in taken])
        places = [place for _, (place, _) in taken]
        create_dataset(group, "place", np.array(places, dtype=np.int64).reshape(-1, 3))
        for kind, name in enumerate(CLASSES):
            _write(group.create_group(name), [motion[kind] for _, (_, motion) in taken], (6, 3))
        roads = sorted(self._road)
        create_dataset(group, "road_place", np.array(roads, dtype=np.int64).reshape(-1, 2))
        _write(group.create_group("road"), [self._road[place] for place in roads], (3, 2))

    def _hash(self, name: str) -> int:
        content = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        return int.from_bytes(content[:8], "big")


def _write(group: h5py.Group, parts: Sequence[Segments], shape: tuple[int, int]) -> None:
    values = [np.empty((0, *shape)), *(one.value_N for one in parts)]
    ranks = [np.empty(0, dtype=np.int64), *(one.rank_N for one in parts)]
    create_dataset(group, "value", np.concatenate(values))
    create_dataset(group, "rank", np.concatenate(ranks))
    create_dataset(group, "first", np.cumsum([0, *(len(one.value_N) for one in parts)]))


def _read(group: h5py.Group, numbers: range) -> list[Segments]:
    """Those of some scenarios or maps, as views of common arrays."""
    bounds = group["first"][numbers.start : numbers.stop + 1].tolist()
    value_N, rank_N = (group[name][bounds[0] : bounds[-1]] for name in ("value", "rank"))
    places = ((begin - bounds[0], end - bounds[0]) for begin, end in itertools.pairwise(bounds))
    return [Segments(value_N[begin:end], rank_N[begin:end]) for begin, end in places]
