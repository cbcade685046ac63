"""Order of the training batches: a pure function of (seed, epoch), whatever the number of ranks.

Samples come in groups (patches, planes) that share a geometry. Most batches come from one group, and every
rank takes the same number of their samples, so that ranks are equally loaded whatever the sizes of the
groups. The remainders of the groups are put together into batches of several groups, whose samples are
assigned to the ranks in snake order, most expensive first.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class GlobalBatch:
    """Samples of one optimiser step, over all ranks."""

    parts: tuple[tuple[int, np.ndarray], ...]
    """Groups, the most expensive first, and the indices of their samples, int64[B]."""

    @property
    def size(self) -> int:
        """Number of samples."""
        return sum(len(index) for _, index in self.parts)


@dataclass(frozen=True)
class RankShare:
    """The samples that one rank takes from one group of a global batch."""

    group: int
    index: np.ndarray
    """int64[B], samples of the group."""
    weight: np.ndarray
    """float32[B]: 1, or 0 for a sample that only keeps a rank busy if there are fewer samples than ranks
    (the others would wait for a rank that skipped the step)."""
    place: np.ndarray
    """int64[B], positions in the global batch."""
    batch_size: int
    """Samples in the global batch."""


class BatchPlan:
    """Batches of every epoch.

    ``group_sizes`` are the numbers of samples of the groups, int64[G], and ``batch_size`` is that of a
    global batch; the last batch of the groups' remainders may be smaller. ``group_costs`` are the computing
    times of a sample of each group, in any unit, float64[G]; 1 by default.
    """

    def __init__(
        self,
        group_sizes: np.ndarray,
        batch_size: int,
        seed: int,
        group_costs: np.ndarray | None = None,
    ) -> None:
        self._sizes = np.asarray(group_sizes, dtype=np.int64)
        self._batch_size, self._seed = batch_size, seed
        costs = np.ones(len(self._sizes)) if group_costs is None else np.asarray(group_costs)
        self._most_expensive_first = np.argsort(-costs, kind="stable")
        self._full = self._sizes // batch_size
        self._remainder = int((self._sizes % batch_size).sum())
        # Group of each batch from one group, and its number among the batches of that group.
        self._group = np.repeat(np.arange(len(self._sizes)), self._full)
        self._number = np.concatenate([np.arange(0), *map(np.arange, self._full)])

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._group) + -(-self._remainder // self._batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """Iterate over the batches of an epoch, beginning with batch ``start``."""
        random = np.random.default_rng([self._seed, epoch])
        samples = [random.permutation(size) for size in self._sizes]
        # (group, sample) of all remainders, [n, 2].
        rest = np.array(
            [
                (group, sample)
                for group in self._most_expensive_first
                for sample in samples[group][self._full[group] * self._batch_size :]
            ],
            dtype=np.int64,
        ).reshape(-1, 2)
        for batch in random.permutation(len(self))[start:]:
            if batch < len(self._group):
                group, begin = self._group[batch], self._number[batch] * self._batch_size
                index = samples[group][begin : begin + self._batch_size]
                yield GlobalBatch(((int(group), index),))
            else:
                begin = (batch - len(self._group)) * self._batch_size
                rows = rest[begin : begin + self._batch_size]
                begins = np.flatnonzero(np.diff(rows[:, 0], prepend=-1))
                parts = np.split(rows, begins[1:])
                yield GlobalBatch(tuple((int(part[0, 0]), part[:, 1]) for part in parts))


def sample_seeds(seed: int, split: str, epoch: int, group: int, index: np.ndarray) -> np.ndarray:
    """Seeds of the random numbers of samples, int64[B], the same on every rank and after every resume."""
    # crc32 instead of hash(), which differs between processes.
    key = [seed, zlib.crc32(split.encode()), epoch, group]
    draws = [
        np.random.SeedSequence([*key, int(sample)]).generate_state(1, np.uint64) for sample in index
    ]
    return (np.concatenate(draws) >> np.uint64(1)).astype(np.int64)


def rank_shares(batch: GlobalBatch, rank: int, world_size: int) -> list[RankShare]:
    """Take a rank's samples of a batch: one share for each group, at least one in all.

    Samples are assigned in snake order, ``0 1 2 2 1 0 0 1 …``: the rank with the most expensive sample of
    one round gets the cheapest of the next.
    """
    mine_P = np.flatnonzero(owners(np.arange(batch.size), world_size) == rank)
    shares, begin = [], 0
    for group, index in batch.parts:
        place = mine_P[(begin <= mine_P) & (mine_P < begin + len(index))]
        if len(place):
            weight = np.ones(len(place), dtype=np.float32)
            shares.append(RankShare(group, index[place - begin], weight, place, batch.size))
        begin += len(index)
    if shares:
        return shares
    group, index = batch.parts[-1]
    weight, place = np.zeros(1, dtype=np.float32), np.array([begin - len(index)])
    return [RankShare(group, index[:1], weight, place, batch.size)]


def owners(place: np.ndarray, world_size: int) -> np.ndarray:
    """Ranks that take the samples at positions ``place`` of a global batch, in snake order."""
    turn, seat = np.divmod(place, world_size)
    return np.where(turn % 2, world_size - 1 - seat, seat)


def micro_batches(shares: list[RankShare], size: int | None) -> list[RankShare]:
    """Split a rank's shares of a batch into parts of at most ``size`` samples; None: as they are."""
    return [
        replace(share, index=share.index[at], weight=share.weight[at], place=share.place[at])
        for share in shares
        for step in [size or len(share.index)]
        for at in (slice(i, i + step) for i in range(0, len(share.index), step))
    ]
