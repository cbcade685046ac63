"""Several datasets as one, so that one model learns from all of them."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from millrace.data.normalisation import Normalisation


class JointDataset:
    """Several datasets of one kind side by side, each with its own groups of samples.

    They have one configuration, and are normalised by common statistics, see `open_joint`. A batch comes
    from one dataset, as it comes from one patch: the sizes of the datasets may differ.
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = list(datasets)
        self.config = self.datasets[0].config
        self.normalisation: Normalisation = self.datasets[0].normalisation
        self.increment_scale: np.ndarray = self.datasets[0].increment_scale
        counts = [len(dataset.core_nodes) for dataset in self.datasets]
        self._first = np.array([0, *itertools.accumulate(counts)])

    def __getattr__(self, name: str) -> Any:
        # What a model needs to be built (numbers of channels, shape of the grid) is equal in all datasets.
        if name.startswith("_") or name == "datasets":
            raise AttributeError(name)
        return getattr(self.datasets[0], name)

    @property
    def definition(self) -> dict[str, object]:
        """Definition of the samples, which is part of the run hash."""
        parts = [dataset.definition for dataset in self.datasets]
        return {**parts[0], "digest": [part["digest"] for part in parts]}

    def groups(self, split: str) -> np.ndarray:
        """Number of samples in each group, int64[G], groups of the first dataset first."""
        return np.concatenate([dataset.groups(split) for dataset in self.datasets])

    @property
    def group_costs(self) -> np.ndarray:
        """Number of points in each group, int64[G]."""
        return np.concatenate([dataset.group_costs for dataset in self.datasets])

    def batch(self, split: str, group: int, index: np.ndarray, weight: Any = None) -> Any:
        """Gather samples of one group of one dataset."""
        dataset, own = self.member(group)
        return dataset.batch(split, own, index, weight)

    def member(self, group: int) -> tuple[Any, int]:
        """Return the dataset of a group, and the number that the group has in it."""
        dataset = int(np.searchsorted(self._first, group, side="right")) - 1
        return self.datasets[dataset], group - int(self._first[dataset])


def open_joint(open_one: Callable[[Any, Normalisation | None], Any], parts: Sequence[Any]) -> Any:
    """Open datasets with common statistics of their variables, each with its own bounding box.

    ``parts`` are the files of each dataset; ``open_one`` is (files, statistics or None) -> dataset.
    """
    own = [open_one(files, None).normalisation for files in parts]
    common = pooled(own)
    boxes = [replace(common, low_D=one.low_D, high_D=one.high_D) for one in own]
    return JointDataset([open_one(files, box) for files, box in zip(parts, boxes, strict=True)])


def pooled(statistics: Sequence[Normalisation]) -> Normalisation:
    """Statistics of all datasets together, each with the same weight; the box is that of the first."""
    mean_V, std_V = _pool([s.mean_V for s in statistics], [s.std_V for s in statistics])
    mean_F, std_F = _pool(
        [s.forcing_mean_F for s in statistics], [s.forcing_std_F for s in statistics]
    )
    return replace(
        statistics[0],
        mean_V=mean_V,
        std_V=std_V,
        increment_std_V=np.sqrt(np.mean([s.increment_std_V**2 for s in statistics], axis=0)),
        forcing_mean_F=mean_F,
        forcing_std_F=std_F,
    )


def _pool(means: Sequence[np.ndarray], stds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    mean = np.mean(means, axis=0)
    # Variance within the datasets and between them.
    variance = np.mean(np.square(stds), axis=0) + np.mean((np.array(means) - mean) ** 2, axis=0)
    return mean, np.sqrt(variance)
