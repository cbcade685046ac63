"""The grid as networks on it need it: matrices of each level, of all blocks or of those of a piece.

What is the same for the whole grid, such as the mean distance between cells, is computed of all of it, so
that the matrices of a piece are rows and columns of those of the grid.

Shape suffixes: N fine cells, M blocks, B samples, V variables, F features, P blocks whose means are given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from millrace.data.device import to_device
from millrace.systems.downscaling.icon_source import Floats, Ints
from millrace.systems.downscaling.pieces import CHILDREN
from millrace.systems.downscaling.sparse import SparseMatrix
from millrace.systems.downscaling.triangles import (
    Triangulation,
    complete,
    differences,
    mean_distance,
    mean_offset,
    moments,
    offsets_of_children,
)


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
    """What is the same for all samples of the whole grid, or of a piece of it.

    The own blocks of a piece come first, then those around them, on whose cells it is not computed what is
    on the whole grid.
    """

    levels: tuple[Level, ...]
    """From the fine cells to the blocks."""
    static_NF: Tensor
    interpolation: SparseMatrix
    """Block means that are given to fine cells, [N, P]."""
    share_N: Tensor
    """Area of a cell over that of its block."""
    block_neighbours_M3: Tensor
    block_centres_M3: Tensor
    n_own: int
    """Own blocks."""
    weight: float = 1.0
    """Number of own blocks over that of an average piece."""

    @property
    def n_blocks(self) -> int:
        """M."""
        return self.levels[-1].size

    def own(self, values_BNV: Tensor) -> Tensor:
        """Values on the cells of the own blocks."""
        if self.n_own == self.n_blocks:
            return values_BNV
        return values_BNV[:, : self.n_own * (self.levels[0].size // self.n_blocks)]

    def mean(self, values_BNV: Tensor) -> Tensor:
        """Mean over variables and own cells, [B], such that the mean over pieces is that of the grid."""
        return self.own(values_BNV).mean(dim=(1, 2)) * self.weight


torch.utils._pytree.register_dataclass(Level)
torch.utils._pytree.register_dataclass(BlockGeometry)


@dataclass(frozen=True, eq=False)
class Cut:
    """`BlockGeometry` of some blocks in the memory of the host, and where they are on the grid."""

    blocks_M: Ints
    """Numbers on the grid, the own ones first."""
    given_P: Ints
    """Blocks whose means are given: these, then those that the interpolation takes as well."""
    n_own: int
    weight: float
    lon_N: Floats
    matrices: Sequence[tuple[csr_array, csr_array | None, csr_array | None]]
    """Of each level: differences, down and up."""
    interpolation: csr_array
    static_NF: np.ndarray
    share_N: np.ndarray
    neighbours_M3: Ints
    centres_M3: np.ndarray

    def on(self, device: torch.device) -> BlockGeometry:
        """The same as tensors on a device."""
        levels = []
        for matrices in self.matrices:
            size = matrices[0].shape[1]
            made = [None if one is None else SparseMatrix(one, device) for one in matrices]
            if torch.is_grad_enabled():
                # Here, in the thread that gathers samples, rather than in the first backward pass.
                _ = [one.transposed for one in made if one is not None]
            assert made[0] is not None
            levels.append(Level(size, made[0], made[1], made[2]))
        static, share, neighbours, centres = (
            to_device(one, device)
            for one in (self.static_NF, self.share_N, self.neighbours_M3, self.centres_M3)
        )
        return BlockGeometry(
            levels=tuple(levels),
            static_NF=static,
            interpolation=SparseMatrix(self.interpolation, device),
            share_N=share,
            block_neighbours_M3=neighbours,
            block_centres_M3=centres,
            n_own=self.n_own,
            weight=self.weight,
        )

    @property
    def nbytes(self) -> int:
        """Size of the matrices and fields."""
        flat = [m for level in self.matrices for m in level if m is not None]
        arrays = [x for m in [*flat, self.interpolation] for x in (m.data, m.indices, m.indptr)]
        return sum(x.nbytes for x in (*arrays, self.static_NF, self.share_N, self.lon_N))


class BlockGrid:
    """A grid in nested order, in the memory of the host.

    ``stored`` are ``centre`` [N, 3], ``area`` [N], and perhaps ``elevation`` and ``land`` [N] of the cells,
    ``neighbours`` those of all levels from the fine cells to the blocks, and ``climatology_NV`` what cells
    differ by from their block, in units of the target; None: it is no feature.
    """

    def __init__(
        self,
        stored: Mapping[str, np.ndarray],
        neighbours: Sequence[Ints],
        climatology_NV: np.ndarray | None,
    ) -> None:
        self.stored, self.neighbours, self._climatology_NV = stored, neighbours, climatology_NV
        self.centres = [stored["centre"]]
        for one in neighbours[1:]:
            mean = self.centres[-1].reshape(len(one), -1, 3).mean(axis=1)
            self.centres.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
        self.n_cells, self.n_blocks = len(neighbours[0]), len(neighbours[-1])
        self.per_block = self.n_cells // self.n_blocks

    @property
    def n_static(self) -> int:
        """Features of a cell that do not change."""
        surface = 2 * sum(name in self.stored for name in ("elevation", "land"))
        climate = 0 if self._climatology_NV is None else self._climatology_NV.shape[1]
        return 6 + surface + climate

    def cut(self, own_M: Ints, seen_M: Ints, weight: float) -> Cut:
        """Some blocks, and around them those of ``seen_M`` that are not among them."""
        blocks_M = np.concatenate([own_M, np.setdiff1d(seen_M, own_M)])
        position_M = np.full(self.n_blocks, -1)
        position_M[blocks_M] = np.arange(len(blocks_M))
        centres = [
            self._of(level, self.centres[level], blocks_M) for level in range(len(self.centres))
        ]
        beside = [self._beside(level, blocks_M, position_M) for level in range(len(self.centres))]
        matrices: list[tuple[csr_array, csr_array | None, csr_array | None]] = []
        for level, (distance, offset) in enumerate(self._scales):
            own = _compact(differences(centres[level], beside[level], distance))
            if level + 1 < len(centres):
                down, up = moments(centres[level], centres[level + 1], offset)
                matrices.append((own, _compact(down), _compact(up)))
            else:
                matrices.append((own, None, None))
        interpolation = self.triangulation.matrix(centres[0])
        corners_P = np.setdiff1d(interpolation.indices, blocks_M)
        given_P = np.concatenate([blocks_M, corners_P])
        position_M[corners_P] = np.arange(len(blocks_M), len(given_P))
        area_N = self._of(0, self.stored["area"], blocks_M)
        block_area = area_N.reshape(-1, self.per_block).sum(axis=1)
        return Cut(
            blocks_M=blocks_M,
            given_P=given_P,
            n_own=len(own_M),
            weight=weight,
            lon_N=np.arctan2(centres[0][:, 1], centres[0][:, 0]),
            matrices=matrices,
            interpolation=_compact(
                csr_array(
                    (interpolation.data, position_M[interpolation.indices], interpolation.indptr),
                    shape=(len(area_N), len(given_P)),
                )
            ),
            static_NF=self._static(blocks_M, centres[-1]).astype(np.float32),
            share_N=(area_N / block_area.repeat(self.per_block)).astype(np.float32),
            neighbours_M3=complete(beside[-1]).astype(np.int64),
            centres_M3=centres[-1].astype(np.float32),
        )

    @cached_property
    def triangulation(self) -> Triangulation:
        """Triangles between the centres of the blocks."""
        return Triangulation(self.centres[-1])

    @cached_property
    def _scales(self) -> list[tuple[float, float]]:
        """Of each level: mean distance between neighbours, and to the centre of the next coarser level."""
        pairs = zip(self.centres, self.neighbours, strict=True)
        distances = [mean_distance(*pair) for pair in pairs]
        coarser = zip(self.centres, self.centres[1:], strict=False)
        return list(zip(distances, [*(mean_offset(*pair) for pair in coarser), 0.0], strict=True))

    @cached_property
    def _deviations(self) -> dict[str, float]:
        """What constant features are measured in."""
        found = {"place": float(offsets_of_children(self.centres[0], self.centres[-1]).std())}
        for name in ("area", "elevation", "land"):
            if name in self.stored:
                values_N = self.stored[name]
                least = 1e-9 * max(np.abs(values_N).max(), 1e-12)
                found[name] = max(_within_block(values_N, self.per_block).std(), least)
        return found

    @cached_property
    def _height(self) -> tuple[float, float]:
        """Mean and deviation of the surface (m)."""
        height = self.stored["elevation"]
        return height.mean(), max(height.std(), 1e-12)

    def _of(self, level: int, values: np.ndarray, blocks_M: Ints) -> np.ndarray:
        """Values of a level on some blocks."""
        return values.reshape(self.n_blocks, -1, *values.shape[1:])[blocks_M].reshape(
            -1, *values.shape[1:]
        )

    def _beside(self, level: int, blocks_M: Ints, position_M: Ints) -> Ints:
        """Neighbours of a level within some blocks; -1 where they are elsewhere."""
        beside = self._of(level, self.neighbours[level], blocks_M)
        size = CHILDREN ** (len(self.neighbours) - 1 - level)
        block = np.where(beside >= 0, position_M[beside // size], -1)
        return np.where(block >= 0, block * size + beside % size, -1)

    def _static(self, blocks_M: Ints, centres_M3: Floats) -> np.ndarray:
        """Position on the sphere and in the block, area, surface and climatology of each cell."""
        fields = {name: self._of(0, values, blocks_M) for name, values in self.stored.items()}
        inside = {
            name: (_within_block(fields[name], self.per_block) / scale).reshape(-1, 1)
            for name, scale in self._deviations.items()
            if name != "place"
        }
        place = offsets_of_children(fields["centre"], centres_M3) / self._deviations["place"]
        columns = [fields["centre"], place, inside["area"]]
        if "elevation" in fields:
            mean, deviation = self._height
            columns += [((fields["elevation"] - mean) / deviation)[:, None], inside["elevation"]]
        if "land" in fields:
            columns += [fields["land"][:, None], inside["land"]]
        if self._climatology_NV is not None:
            columns.append(self._of(0, self._climatology_NV, blocks_M))
        return np.concatenate(columns, axis=1)


def _within_block(values_N: np.ndarray, per_block: int) -> np.ndarray:
    """Differences from the mean of the block, [M, cells]."""
    blocks = values_N.reshape(-1, per_block)
    return blocks - blocks.mean(axis=1, keepdims=True)


def _compact(matrix: csr_array) -> csr_array:
    """In single precision, as products take it."""
    indices, start = (x.astype(np.int32) for x in (matrix.indices, matrix.indptr))
    return csr_array((matrix.data.astype(np.float32), indices, start), shape=matrix.shape)
