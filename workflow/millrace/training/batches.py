"""Order of the training batches: a pure function of (seed, epoch), whatever the number of ranks.

Samples come in groups (patches, planes) that share a geometry, and all samples of a batch come from one
group. Every rank takes its share of the same batch, so that ranks are equally loaded whatever the
sizes of the groups, and any layout trains on the same sequence of global batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class GlobalBatch:
    """Samples of one optimiser step, over all ranks."""

    group: int
    index: np.ndarray
    """int64[B]: samples of the group."""


@dataclass(frozen=True)
class RankShare:
    """What one rank takes of a global batch."""

    group: int
    index: np.ndarray
    weight: np.ndarray
    """float32: 1, or 0 for a sample that only keeps a rank busy when there are fewer samples than
    ranks (a rank that skipped the step would leave the others waiting)."""
    batch_size: int
    """Samples in the global batch."""


class BatchPlan:
    """Batches of every epoch.

    Parameters
    ----------
    group_sizes : ndarray
        int64[G], samples of each group.
    batch_size : int
        Samples of a global batch; the last batch of a group may be smaller.
    seed : int
    """

    def __init__(self, group_sizes: np.ndarray, batch_size: int, seed: int) -> None:
        self._sizes = np.asarray(group_sizes, dtype=np.int64)
        self._batch_size = batch_size
        self._seed = seed
        per_group = -(-self._sizes // batch_size)
        self._group = np.repeat(np.arange(len(self._sizes)), per_group)
        self._position = np.arange(per_group.sum()) - np.repeat(
            per_group.cumsum() - per_group, per_group
        )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._group)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """Iterate over the batches of an epoch, from the ``start``-th on."""
        random = np.random.default_rng([self._seed, epoch])
        samples = [random.permutation(size) for size in self._sizes]
        for batch in random.permutation(len(self))[start:]:
            group, begin = self._group[batch], self._position[batch] * self._batch_size
            yield GlobalBatch(int(group), samples[group][begin : begin + self._batch_size])


def rank_share(batch: GlobalBatch, rank: int, world_size: int) -> RankShare:
    """Take every ``world_size``-th sample of a batch, beginning with the ``rank``-th."""
    index = batch.index[rank::world_size]
    weight = np.ones(len(index), dtype=np.float32)
    if not len(index):
        index, weight = batch.index[:1], np.zeros(1, dtype=np.float32)
    return RankShare(batch.group, index, weight, len(batch.index))


def micro_batches(share: RankShare, size: int | None) -> list[RankShare]:
    """Split what a rank takes of a batch into parts of at most ``size`` samples, at least one part."""
    step = size or len(share.index)
    return [
        replace(share, index=share.index[i : i + step], weight=share.weight[i : i + step])
        for i in range(0, len(share.index), step)
    ]
