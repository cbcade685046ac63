"""Samples of blocks: a grid at one time, or a piece of it, as the downscaler sees it.

A sample is not one block but many: messages cross the seams between blocks. By default it is the whole
grid. Large grids are divided into pieces, and a sample of a piece has around its own blocks all those that
the network sees from there, so that it gives on the own ones what it gives on the whole grid.

The target is what the cells differ by from the mean of their block, in units of its standard
deviation over the training period.

Shape suffixes: N fine cells, M blocks, P blocks whose means are given, L levels, B samples, V variables,
F features, T times.
"""

from collections import OrderedDict
from collections.abc import Sequence
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
from millrace.data.split import SPLITS, Split
from millrace.data.window_dataset import CACHE_BYTES
from millrace.errors import ConfigError
from millrace.systems.downscaling.blocks import SCHEMA
from millrace.systems.downscaling.geometry import BlockGeometry, BlockGrid, Cut
from millrace.systems.downscaling.icon_source import Ints
from millrace.systems.downscaling.pieces import Seen, divided
from millrace.systems.downscaling.settings import BlockDatasetConfig

DAY, YEAR = 1.0, 365.2425


ON_DEVICE = 2
"""Pieces whose geometry is kept on the device."""
CUT_BYTES = 4 << 30
"""Size of the matrices of pieces in the memory of the host, beyond which the least recently used go."""


@dataclass(frozen=True)
class BlockBatch:
    """All cells of the grid or of a piece at some times, normalised."""

    y_BNV: Tensor
    """Differences from the block means."""
    coarse_BMV: Tensor
    """Block means."""
    features_BNF: Tensor
    """Interpolated block means less those of the own block (in units of the target), then sine and
    cosine of the local solar time and, if asked for, of the time of the year. [B, N, 0] for a network that
    does not take them."""
    clock_BF: Tensor
    """Sine and cosine of the time of day (UTC) and, if asked for, of the year."""
    weight_B: Tensor
    """1 for a sample that counts, 0 for one that only keeps the ranks in step."""
    geometry: BlockGeometry
    sigma_BL: Tensor | None = None
    """Standard deviations of the noise, where a model takes it: L is 1, or the number of blocks."""
    noise_BNV: Tensor | None = None
    """Standard normal."""

    @property
    def y_KBTV(self) -> Tensor:
        """The target in the layout of field models, K own cells and T = 1."""
        return as_fields(self.geometry.own(self.y_BNV))


torch.utils._pytree.register_dataclass(BlockBatch)


def as_fields(values_BNV: Tensor) -> Tensor:
    """Values of cells in the layout of field models, [K, B, T, V]."""
    return values_BNV.transpose(0, 1).unsqueeze(2)


class BlockDataset:
    """Samples of `blocks.h5`, the file of the rule ``extract_samples``; batches are made on ``device``.

    Groups of samples are pieces of the grid. Fields of up to ``cache_bytes`` are kept on the device, those
    of pieces in the memory of the host, larger ones are read again for each batch: of pieces their blocks
    alone. The host holds the grid itself, about 100 bytes for each cell, `CUT_BYTES` of matrices of pieces
    and ``cache_bytes`` of fields.
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
            self.neighbours: list[Ints] = [
                file["neighbours"][str(level)].astype(np.int32)[()] for level in levels
            ]
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
        climate = self.climatology_NV / self.normalisation.increment_std_V
        used = climate if config.climatology else None
        self.grid = BlockGrid(geometry, self.neighbours, used)
        self.is_whole = config.piece_blocks is None
        """Whether a sample is the whole grid."""
        most = config.piece_blocks or self.grid.n_blocks
        self.pieces = divided(self.grid.centres[-1], most)
        """Own blocks of each piece."""
        self.core_nodes = [np.empty(0, dtype=np.int64)] * len(self.pieces)
        self._seen: Seen = lambda blocks, _: blocks
        self._takes_features = True
        self._cuts: dict[int, Cut] = {}
        self._geometries: OrderedDict[int, BlockGeometry] = OrderedDict()
        self._fields: tuple[Tensor, Tensor] | None = None
        if 0 < 4 * shape[0] * shape[1] * len(self._columns) <= cache_bytes:
            self._fields = self._kept(*self._every(np.arange(shape[0])))

    def recipe(self) -> dict[str, Outline]:
        """What is needed to make samples of named arrays, see `millrace.data.recipe`."""
        return {"blocks": Outline(self._path, ("fine", "coarse", "time"))}

    @property
    def definition(self) -> dict[str, object]:
        """What the samples are: part of what decides a run's weights."""
        return {"digest": self.digest, **self.config.essentials()}

    @property
    def n_features(self) -> int:
        """Channels of a cell, the constant ones included."""
        return self.grid.n_static + len(self.config.variables) + self.n_clock

    @property
    def n_clock(self) -> int:
        """Numbers that tell the time."""
        return 4 if self.config.season else 2

    def times(self, split: Split) -> np.ndarray:
        """Time indices of a split, int64[T]."""
        return np.arange(*self.split_ranges[SPLITS.index(split)])

    def groups(self, split: Split) -> np.ndarray:
        """Number of samples of each piece, which all share its geometry."""
        return np.full(len(self.pieces), len(self.times(split)))

    @property
    def group_costs(self) -> np.ndarray:
        """All samples cost about the same."""
        return np.ones(len(self.pieces))

    def surround(self, seen: Seen, takes_features: bool = True) -> None:
        """Take the blocks around each piece that a network sees there; by default there are none.

        ``takes_features`` says whether the network takes the features of cells; they are empty if not.
        """
        self._seen, self._takes_features = seen, takes_features
        self._cuts.clear()
        self._geometries.clear()

    def cut(self, piece: int) -> Cut:
        """Where a piece is, with the blocks around it, and its matrices."""
        if piece in self._cuts:
            return self._cuts[piece]
        own_M = self.pieces[piece]
        seen_M = self._seen(own_M, self.neighbours) if len(self.pieces) > 1 else own_M
        weight = len(own_M) * len(self.pieces) / self.grid.n_blocks
        made = self.grid.cut(own_M, seen_M, weight)
        # Pieces come in turns: in place of others none would be there when it is asked for again.
        if made.nbytes + sum(one.nbytes for one in self._cuts.values()) <= CUT_BYTES:
            self._cuts[piece] = made
        return made

    def geometry(self, piece: int = 0) -> BlockGeometry:
        """Geometry of a piece on the device."""
        if piece not in self._geometries:
            self._geometries[piece] = self.cut(piece).on(self.device)
            while len(self._geometries) > ON_DEVICE:
                self._geometries.popitem(last=False)
        self._geometries.move_to_end(piece)
        return self._geometries[piece]

    def batch(
        self, split: Split, group: int, index: np.ndarray, weight: Sequence[float] | None = None
    ) -> BlockBatch:
        """Gather samples of a piece and a split by their numbers in it."""
        return self.at_times(self.times(split)[index], weight, group)

    def at_times(self, steps: np.ndarray, weight: Any = None, piece: int = 0) -> BlockBatch:
        """Samples of a piece at time indices, whatever their split."""
        steps = np.asarray(steps)
        cut, geometry = self.cut(piece), self.geometry(piece)
        fine_BNV, given_BPV = self.fields(steps, None if self.is_whole else cut)
        coarse_BMV, clock_BF = given_BPV[:, : geometry.n_blocks], self._clock(steps)
        features_BNF = fine_BNV[..., :0]
        if self._takes_features:
            smooth_BNV = geometry.interpolation(given_BPV) - self.of_cells(coarse_BMV)
            smooth_BNV *= self._tensor(1 / self.increment_scale)
            features_BNF = torch.cat([smooth_BNV, self._local(clock_BF, cut.lon_N)], dim=2)
        return BlockBatch(
            y_BNV=fine_BNV,
            coarse_BMV=coarse_BMV,
            features_BNF=features_BNF,
            clock_BF=self._tensor(clock_BF),
            weight_B=self._tensor(np.ones(len(steps)) if weight is None else weight),
            geometry=geometry,
        )

    def fields(self, steps: np.ndarray, cut: Cut | None = None) -> tuple[Tensor, Tensor]:
        """Normalised differences and block means at time indices, of the whole grid or of a piece.

        Those of a piece are on the device, [B, N, V] and [B, P, V]; those of a grid that is divided into
        pieces are not.
        """
        if self._fields is None:
            fine_BNV, coarse_BPV = self._read(steps, cut)
        else:
            fine_TNV, coarse_TMV = self._fields
            chosen = torch.from_numpy(steps).to(fine_TNV.device)
            if cut is None:
                return fine_TNV[chosen], coarse_TMV[chosen]
            blocks_M, given_P = (torch.from_numpy(one) for one in (cut.blocks_M, cut.given_P))
            fine_TMKV = fine_TNV.unflatten(1, (self.grid.n_blocks, -1))
            fine_BNV = fine_TMKV[chosen[:, None], blocks_M].flatten(1, 2)
            coarse_BPV = coarse_TMV[chosen[:, None], given_P]
        if cut is None:
            return self._kept(fine_BNV, coarse_BPV)
        return to_device(fine_BNV, self.device), to_device(coarse_BPV, self.device)

    def _every(self, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        """Fields at all times, of which ranks of a node have one copy in the memory of the host."""
        if self.is_whole and self.device.type != "cpu":
            return self._read(steps)
        key = [type(self).__qualname__, self.definition, self.normalisation.to_json()]
        fields = shared(key, lambda: dict(zip(("fine", "coarse"), self._read(steps), strict=True)))
        return fields["fine"], fields["coarse"]

    def _kept(self, fine_TNV: Tensor, coarse_TMV: Tensor) -> tuple[Tensor, Tensor]:
        """Fields of the whole grid where they are kept."""
        where = self.device if self.is_whole else torch.device("cpu")
        return to_device(fine_TNV, where), to_device(coarse_TMV, where)

    def of_cells(self, values_BMV: Tensor) -> Tensor:
        """Repeat values of the blocks for their cells, [B, N, V]."""
        return values_BMV.repeat_interleave(self.grid.per_block, dim=1)

    def to_physical(self, values_BNV: Tensor) -> np.ndarray:
        """Differences from the block means in the units of the field."""
        return values_BNV.double().cpu().numpy() * self.normalisation.increment_std_V

    def coarse_physical(self, values_BMV: Tensor) -> np.ndarray:
        """Block means in the units of the field."""
        stats = self.normalisation
        return values_BMV.double().cpu().numpy() * stats.std_V + stats.mean_V

    def _read(self, steps: np.ndarray, cut: Cut | None = None) -> tuple[Tensor, Tensor]:
        """Normalised differences and block means at time indices, of the whole grid or of a piece."""
        increasing, position = np.unique(steps, return_inverse=True)
        stats, fine, coarse = self.normalisation, [], []
        # Its parts were looked at when the dataset was opened.
        with reading(self._path), h5py.File(self._path, "r") as file:
            for start in range(0, len(increasing), 32):
                part = increasing[start : start + 32]
                if cut is None:
                    given, of_cells = file["coarse"][part], file["fine"][part]
                else:
                    given = file["coarse"][part][:, cut.given_P]
                    of_cells = _rows(file["fine"], part, cut.blocks_M, self.grid.per_block)
                means = given[..., self._columns].astype(np.float64)
                own = means if cut is None else means[:, : len(cut.blocks_M)]
                residual = of_cells[..., self._columns] - own.repeat(self.grid.per_block, axis=1)
                fine.append((residual / stats.increment_std_V).astype(np.float32))
                coarse.append(((means - stats.mean_V) / stats.std_V).astype(np.float32))
        fine_BNV, coarse_BPV = (
            torch.from_numpy(np.concatenate(parts)[position]) for parts in (fine, coarse)
        )
        return fine_BNV, coarse_BPV

    def _clock(self, steps: np.ndarray) -> np.ndarray:
        """Sine and cosine of the time of day and, if asked for, of the year, float64[B, F]."""
        day_B, year_B = (2 * np.pi * (self.time[steps] % period) / period for period in (DAY, YEAR))
        angles = (day_B, year_B) if self.config.season else (day_B,)
        return np.stack([f(angle_B) for angle_B in angles for f in (np.sin, np.cos)], axis=-1)

    def _local(self, clock_BF: np.ndarray, lon_N: np.ndarray) -> Tensor:
        """The same of each cell at its local time, [B, N, F]."""
        local_BNF = np.empty((len(clock_BF), len(lon_N), clock_BF.shape[1]), dtype=np.float32)
        local_BNF[...] = clock_BF[:, None]
        # By the sum formulas: a sine costs ten times a product.
        sine_B1, cosine_B1, *_ = clock_BF.T[..., None]
        local_BNF[..., 0] = sine_B1 * np.cos(lon_N) + cosine_B1 * np.sin(lon_N)
        local_BNF[..., 1] = cosine_B1 * np.cos(lon_N) - sine_B1 * np.sin(lon_N)
        return self._tensor(local_BNF)

    def _tensor(self, array: Any) -> Tensor:
        return to_device(np.asarray(array), self.device, np.float32)


def _rows(fine: Any, steps: np.ndarray, blocks_M: Ints, per_block: int) -> np.ndarray:
    """Cells of some blocks at increasing time indices, [T, N, V]: blocks that follow each other at once."""
    begins = np.flatnonzero(np.diff(blocks_M, prepend=-2) != 1)
    runs = list(zip(begins, [*begins[1:], len(blocks_M)], strict=True))
    found = np.empty((len(steps), len(blocks_M) * per_block, fine.shape[2]), dtype=np.float32)
    for row, step in enumerate(steps):
        for begin, end in runs:
            first, last = blocks_M[begin] * per_block, (blocks_M[end - 1] + 1) * per_block
            found[row, begin * per_block : end * per_block] = fine[int(step), first:last]
    return found
