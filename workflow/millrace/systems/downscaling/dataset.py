"""Samples of blocks: the whole grid at one time, as the downscaler sees it.

A sample is not one block but all of them: messages cross the seams between blocks, which would take a halo
as wide as the network sees, and on grids of this size that is most of the sphere.

The target is what the cells differ by from the mean of their block, in units of its standard
deviation over the training period.

Shape suffixes: N fine cells, M blocks, L levels, B samples, V variables, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from millrace.data.hdf5 import open_checked
from millrace.data.normalisation import Normalisation
from millrace.data.split import SPLITS, Split
from millrace.data.window_dataset import CACHE_BYTES
from millrace.errors import ConfigError
from millrace.systems.downscaling.blocks import SCHEMA
from millrace.systems.downscaling.settings import BlockDatasetConfig
from millrace.systems.downscaling.sparse import SparseMatrix
from millrace.systems.downscaling.triangles import (
    barycentric,
    complete,
    differences,
    moments,
    offsets,
)

DAY, YEAR = 1.0, 365.2425


@dataclass(frozen=True, eq=False)
class Level:
    """Matrices of one level of refinement, see `millrace.systems.downscaling.triangles`."""

    size: int
    differences: SparseMatrix
    down: SparseMatrix | None
    """To the next coarser level; None for blocks."""
    up: SparseMatrix | None


@dataclass(frozen=True, eq=False)
class BlockGeometry:
    """What is the same for all samples."""

    levels: tuple[Level, ...]
    """From the fine cells to the blocks."""
    static_NF: Tensor
    interpolation: SparseMatrix
    """Block means to fine cells, [N, M]."""
    share_N: Tensor
    """Area of a cell over that of its block."""
    block_neighbours_M3: Tensor
    block_centres_M3: Tensor

    @property
    def n_blocks(self) -> int:
        """M."""
        return self.levels[-1].size


@dataclass(frozen=True)
class BlockBatch:
    """All cells at some times, normalised."""

    y_BNV: Tensor
    """Differences from the block means."""
    coarse_BMV: Tensor
    """Block means."""
    features_BNF: Tensor
    """Interpolated block means less those of the own block (in units of the target), then sine and
    cosine of the local solar time and, if asked for, of the time of the year."""
    clock_BF: Tensor
    """Sine and cosine of the time of day (UTC) and, if asked for, of the year."""
    weight_B: Tensor
    """1 for a sample that counts, 0 for one that only keeps the ranks in step."""
    geometry: BlockGeometry
    sigma_B: Tensor | None = None
    """Standard deviation of the noise, where a model takes it."""
    noise_BNV: Tensor | None = None
    """Standard normal."""

    @property
    def y_KBTV(self) -> Tensor:
        """The target in the layout of field models, K cells and T = 1."""
        return as_fields(self.y_BNV)


def as_fields(values_BNV: Tensor) -> Tensor:
    """Values of cells in the layout of field models, [K, B, T, V]."""
    return values_BNV.transpose(0, 1).unsqueeze(2)


class BlockDataset:
    """Samples of `blocks.h5`, the file of the rule ``extract_samples``; batches are made on ``device``.

    Fields of up to ``cache_bytes`` are kept there, larger ones are read again for each batch.
    ``statistics`` are those of the data that a model was trained on, to apply it to other data. Raises
    `ConfigError` if a variable is not in the file.
    """

    config_type = BlockDatasetConfig
    roles = ("blocks",)
    weighted_variable: str | None = None

    def __init__(
        self,
        blocks: Path,
        config: BlockDatasetConfig,
        device: torch.device | None = None,
        cache_bytes: int = CACHE_BYTES,
        statistics: Normalisation | None = None,
    ) -> None:
        self._path, self.config = Path(blocks), config
        self.device = device or torch.device("cpu")
        with open_checked(blocks, SCHEMA) as file:
            present = list(file.attrs["variables"])
            for name in config.variables:
                if name not in present:
                    raise ConfigError(
                        f"data.variables: {blocks} has no {name!r}; it has {', '.join(present)}"
                    )
            self._columns = [present.index(name) for name in config.variables]
            self.time, self.split_ranges = file["time"][()], file["split"][()]
            self.digest = str(file.attrs["digest"])
            self.units = [list(file.attrs["units"])[column] for column in self._columns]
            stats = {name: file["stats"][name][()][..., self._columns] for name in file["stats"]}
            geometry = {name: file["geometry"][name][()] for name in file["geometry"]}
            levels = range(int(file.attrs["levels"]) + 1)
            self.neighbours = [file["neighbours"][str(level)][()] for level in levels]
            shape, self.preparation = file["fine"].shape, {"blocks": str(file.attrs["config"])}
        self.normalisation = statistics or Normalisation(
            variables=config.variables,
            mean_V=stats["coarse_mean"],
            std_V=stats["coarse_std"],
            increment_std_V=stats["residual_std"],
            forcings=(),
            forcing_mean_F=np.empty(0),
            forcing_std_F=np.empty(0),
            low_D=-np.ones(3),
            high_D=np.ones(3),
        )
        self.centres_N3, self.area_N = geometry["centre"], geometry["area"]
        self.land_N = geometry.get("land")
        self.climatology_NV = stats["residual_mean"]
        """What cells differ by from their block in the mean of the training period, physical."""
        self.increment_scale = self.normalisation.increment_std_V / self.normalisation.std_V
        self.core_nodes = [np.arange(shape[1])]
        self.ghost_nodes = [np.empty(0, dtype=np.int64)]
        self.geometry = self._geometry(geometry)
        in_memory = 4 * shape[0] * shape[1] * len(self._columns) <= cache_bytes
        self._fields = self._read(np.arange(shape[0])) if in_memory else None

    @property
    def definition(self) -> dict[str, object]:
        """What the samples are: part of what decides a run's weights."""
        return {"digest": self.digest, **self.config.essentials()}

    @property
    def n_features(self) -> int:
        """Channels of a cell, the constant ones included."""
        return self.geometry.static_NF.shape[1] + len(self.config.variables) + self.n_clock

    @property
    def n_clock(self) -> int:
        """Numbers that tell the time."""
        return 4 if self.config.season else 2

    def times(self, split: Split) -> np.ndarray:
        """Time indices of a split, int64[T]."""
        return np.arange(*self.split_ranges[SPLITS.index(split)])

    def groups(self, split: Split) -> np.ndarray:
        """Number of samples; one group, since all share the grid."""
        return np.array([len(self.times(split))])

    @property
    def group_costs(self) -> np.ndarray:
        """All samples cost the same."""
        return np.ones(1)

    def batch(
        self, split: Split, group: int, index: np.ndarray, weight: Sequence[float] | None = None
    ) -> BlockBatch:
        """Gather samples of a split by their numbers in it."""
        return self.at_times(self.times(split)[index], weight)

    def at_times(self, steps: np.ndarray, weight: Any = None) -> BlockBatch:
        """Samples at time indices, whatever their split."""
        steps = np.asarray(steps)
        if self._fields is None:
            fine_BNV, coarse_BMV = self._read(steps)
        else:
            chosen = torch.from_numpy(steps).to(self.device)
            fine_BNV, coarse_BMV = (values[chosen] for values in self._fields)
        smooth_BNV = self.geometry.interpolation(coarse_BMV) - self.of_cells(coarse_BMV)
        clock_BF, local_BNF = self._clock(steps)
        scale = self._tensor(1 / self.increment_scale)
        return BlockBatch(
            y_BNV=fine_BNV,
            coarse_BMV=coarse_BMV,
            features_BNF=torch.cat([smooth_BNV * scale, local_BNF], dim=2),
            clock_BF=clock_BF,
            weight_B=self._tensor(np.ones(len(steps)) if weight is None else weight),
            geometry=self.geometry,
        )

    def of_cells(self, values_BMV: Tensor) -> Tensor:
        """Repeat values of the blocks for their cells, [B, N, V]."""
        return values_BMV.repeat_interleave(len(self.area_N) // values_BMV.shape[1], dim=1)

    def to_physical(self, values_BNV: Tensor) -> np.ndarray:
        """Differences from the block means in the units of the field."""
        return values_BNV.double().cpu().numpy() * self.normalisation.increment_std_V

    def coarse_physical(self, values_BMV: Tensor) -> np.ndarray:
        """Block means in the units of the field."""
        stats = self.normalisation
        return values_BMV.double().cpu().numpy() * stats.std_V + stats.mean_V

    def _read(self, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        """Normalised differences and block means at time indices."""
        increasing, position = np.unique(steps, return_inverse=True)
        stats, fine, coarse = self.normalisation, [], []
        with open_checked(self._path, SCHEMA) as file:
            per_block = file["fine"].shape[1] // file["coarse"].shape[1]
            for start in range(0, len(increasing), 32):
                part = increasing[start : start + 32]
                means = file["coarse"][part][..., self._columns].astype(np.float64)
                values = file["fine"][part][..., self._columns]
                residual = (values - means.repeat(per_block, axis=1)) / stats.increment_std_V
                fine.append(residual.astype(np.float32))
                coarse.append(((means - stats.mean_V) / stats.std_V).astype(np.float32))
        fine_BNV, coarse_BMV = (
            self._tensor(np.concatenate(parts)[position]) for parts in (fine, coarse)
        )
        return fine_BNV, coarse_BMV

    def _clock(self, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        """Sine and cosine of the time for all cells alike, and of the local time for each."""
        angle_B = 2 * np.pi * (self.time[steps] % DAY)
        year_B = 2 * np.pi * (self.time[steps] % YEAR) / YEAR
        lon_N = np.arctan2(self.centres_N3[:, 1], self.centres_N3[:, 0])
        local_BN = angle_B[:, None] + lon_N
        angles = [(angle_B, local_BN), (year_B, np.broadcast_to(year_B[:, None], local_BN.shape))]
        used = angles if self.config.season else angles[:1]
        common, own = (
            self._tensor(np.stack([f(x) for x in kind for f in (np.sin, np.cos)], axis=-1))
            for kind in zip(*used, strict=True)
        )
        return common, own

    def _geometry(self, stored: dict[str, np.ndarray]) -> BlockGeometry:
        centres = [self.centres_N3]
        for neighbours in self.neighbours[1:]:
            mean = centres[-1].reshape(len(neighbours), -1, 3).mean(axis=1)
            centres.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
        levels = []
        for level, (place, neighbours) in enumerate(zip(centres, self.neighbours, strict=True)):
            pair = moments(place, centres[level + 1]) if level + 1 < len(centres) else (None, None)
            down, up = (None if m is None else SparseMatrix(m, self.device) for m in pair)
            matrix = SparseMatrix(differences(place, neighbours), self.device)
            levels.append(Level(len(place), matrix, down, up))
        per_block = len(centres[0]) // len(centres[-1])
        block_area = self.area_N.reshape(-1, per_block).sum(axis=1)
        neighbours_M3 = torch.from_numpy(complete(self.neighbours[-1]).astype(np.int64))
        return BlockGeometry(
            levels=tuple(levels),
            static_NF=self._tensor(self._static(stored, centres[-1], per_block)),
            interpolation=SparseMatrix(barycentric(centres[-1], centres[0]), self.device),
            share_N=self._tensor(self.area_N / block_area.repeat(per_block)),
            block_neighbours_M3=neighbours_M3.to(self.device),
            block_centres_M3=self._tensor(centres[-1]),
        )

    def _static(
        self, stored: dict[str, np.ndarray], blocks_M3: np.ndarray, per_block: int
    ) -> np.ndarray:
        """Position on the sphere and in the block, area, surface and climatology of each cell."""
        inside = offsets(blocks_M3[:, None], stored["centre"].reshape(-1, per_block, 3))
        inside = inside.reshape(-1, 2) / inside.std()
        columns = [stored["centre"], inside, _within_block(stored["area"], per_block)]
        if "elevation" in stored:
            height = stored["elevation"]
            columns += [((height - height.mean()) / max(height.std(), 1e-12))[:, None]]
            columns += [_within_block(height, per_block)]
        if "land" in stored:
            columns += [stored["land"][:, None], _within_block(stored["land"], per_block)]
        if self.config.climatology:
            columns.append(self.climatology_NV / self.normalisation.increment_std_V)
        return np.concatenate(columns, axis=1)

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)


def _within_block(values_N: np.ndarray, per_block: int) -> np.ndarray:
    """Differences from the block's mean in units of their deviation, [N, 1]; 0 if there are none."""
    blocks = values_N.reshape(-1, per_block)
    residual = blocks - blocks.mean(axis=1, keepdims=True)
    least = 1e-9 * max(np.abs(values_N).max(), 1e-12)
    return (residual / max(residual.std(), least)).reshape(-1, 1)
