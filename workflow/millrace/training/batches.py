"""Order of the training batches: a pure function of (seed, epoch), whatever the number of ranks.

Samples come in groups (patches, planes) that share a geometry. Most batches are of one group, and every
rank takes the same number of samples of it, so that ranks are equally loaded whatever the sizes of the
groups. What is left over of the groups is put together into batches of several groups, the dearest samples
first, and dealt out to the ranks to and fro.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class GlobalBatch:
    """Samples of one optimiser step, over all ranks."""

    parts: tuple[tuple[int, np.ndarray], ...]
    """Groups, the dearest first, and int64[B]: samples of each."""

    @property
    def size(self) -> int:
        """Samples of all parts."""
        return sum(len(index) for _, index in self.parts)


@dataclass(frozen=True)
class RankShare:
    """What one rank takes of a global batch from one group."""

    group: int
    index: np.ndarray
    weight: np.ndarray
    """float32: 1, or 0 for a sample that only keeps a rank busy when there are fewer samples than
    ranks (a rank that skipped the step would leave the others waiting)."""
    place: np.ndarray
    """int64: where in the global batch."""
    batch_size: int
    """Samples in the global batch."""


class BatchPlan:
    """Batches of every epoch.

    Parameters
    ----------
    group_sizes : ndarray
        int64[G], samples of each group.
    batch_size : int
        Samples of a global batch; the last one of an epoch's left-overs may be smaller.
    seed : int
    group_costs : ndarray, optional
        float64[G], how long a sample of each group takes, in any unit; 1 by default.
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
        self._dearest_first = np.argsort(-costs, kind="stable")
        self._whole = self._sizes // batch_size
        self._left_over = self._sizes - self._whole * batch_size
        self._group = np.repeat(np.arange(len(self._sizes)), self._whole)
        self._position = np.arange(len(self._group)) - np.repeat(
            self._whole.cumsum() - self._whole, self._whole
        )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._group) - (-int(self._left_over.sum()) // self._batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """Iterate over the batches of an epoch, from the ``start``-th on."""
        random = np.random.default_rng([self._seed, epoch])
        samples = [random.permutation(size) for size in self._sizes]
        # (group, sample) of all left-overs: [n, 2].
        left_over = np.array(
            [
                (group, sample)
                for group in self._dearest_first
                for sample in samples[group][self._whole[group] * self._batch_size :]
            ],
            dtype=np.int64,
        ).reshape(-1, 2)
        for batch in random.permutation(len(self))[start:]:
            if batch < len(self._group):
                group, begin = self._group[batch], self._position[batch] * self._batch_size
                index = samples[group][begin : begin + self._batch_size]
                yield GlobalBatch(((int(group), index),))
            else:
                begin = (batch - len(self._group)) * self._batch_size
                yield _by_group(left_over[begin : begin + self._batch_size])


def _by_group(rows: np.ndarray) -> GlobalBatch:
    """Rows of (group, sample), those of a group side by side, as a batch."""
    begins = np.flatnonzero(np.diff(rows[:, 0], prepend=-1))
    return GlobalBatch(tuple((int(part[0, 0]), part[:, 1]) for part in np.split(rows, begins[1:])))


def sample_seeds(seed: int, split: str, epoch: int, group: int, index: np.ndarray) -> np.ndarray:
    """Seeds of what samples draw at random, int64[B]: the same whoever draws, and whenever."""
    # crc32 and not hash(), which is another one in each process.
    key = [seed, zlib.crc32(split.encode()), epoch, group]
    draws = [
        np.random.SeedSequence([*key, int(sample)]).generate_state(1, np.uint64) for sample in index
    ]
    return (np.concatenate(draws) >> np.uint64(1)).astype(np.int64)


def rank_shares(batch: GlobalBatch, rank: int, world_size: int) -> list[RankShare]:
    """Take a rank's samples of a batch, one share a group, at least one.

    The samples are dealt to and fro, ``0 1 2 2 1 0 0 1 …``: the rank that gets the dearest of one round
    gets the cheapest of the next.
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
    """Ranks that take the samples at given places of a global batch."""
    turn, seat = np.divmod(place, world_size)
    return np.where(turn % 2, world_size - 1 - seat, seat)


def micro_batches(shares: list[RankShare], size: int | None) -> list[RankShare]:
    """Split what a rank takes of a batch into parts of at most ``size`` samples, at least one part."""
    return [
        replace(share, index=share.index[at], weight=share.weight[at], place=share.place[at])
        for share in shares
        for step in [size or len(share.index)]
        for at in (slice(i, i + step) for i in range(0, len(share.index), step))
    ]
