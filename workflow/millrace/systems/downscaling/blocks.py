"""Blocks: a refined triangular grid in nested order, with fields, block means and real neighbours.

A block is a cell of the grid ``levels`` refinements up with its 4^levels descendants. Cells are renumbered
so that the four children of a cell follow each other on every level: pooling is then a reshape. Who
belongs to whom comes from ``parent_cell_index`` alone, and who is beside whom from
``neighbor_cell_index``.

Shape suffixes: N fine cells, M blocks, T time steps, V variables.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.account import Account
from millrace.data.hdf5 import create, create_dataset, rows_per_chunk, strings
from millrace.data.split import MINIMUM_STD, Moments, SplitConfig, time_split
from millrace.errors import DataError
from millrace.provenance import code_version, fingerprint
from millrace.systems.base import Progress
from millrace.systems.downscaling.icon import open_source
from millrace.systems.downscaling.icon_source import Floats, IconSource, Ints
from millrace.systems.downscaling.settings import BlockConfig

SCHEMA = "millrace.blocks/1"
CHILDREN = 4

SLAB_BYTES = 16 << 20


def extract_blocks(
    source: Path,
    output: Path,
    config: BlockConfig,
    split: SplitConfig,
    progress: Progress | None = None,
) -> None:
    """Read a directory of ICON files and write ``blocks.h5``.

    It appears only when it is complete, and memory does not grow with the number of steps. Statistics are
    those of the training period: mean and deviation of the block means, deviation of what the cells differ
    from them by, and the mean of that for each cell. `samples.json` beside ``output`` says what was read,
    kept, and left out for which reason. ``progress`` is called with (steps done, all). Raises
    `ConfigError` or `DataError` if the split or the source (see `open_source`) does not allow it.
    """
    account = Account()
    icon = open_source(source, config.variables, config.levels, config.missing, account)
    finest, fields = icon.grids[0], icon.fields
    n_steps, n_cells, n_variables = len(fields.time_T), len(finest.lon_N), len(config.variables)
    ranges = time_split(n_steps, split)
    order, sizes = nested_order([grid.parent_N for grid in icon.grids], finest.path)
    area_N = finest.area_N[order]
    train = int(ranges[0, 1])
    with create(output) as file:
        _write_geometry(file, icon, order, sizes)
        create_dataset(file, "time", fields.time_T)
        create_dataset(file, "split", ranges)
        for name, size in (("fine", n_cells), ("coarse", sizes[-1])):
            shape = (n_steps, size, n_variables)
            rows = rows_per_chunk(shape, np.float32)
            create_dataset(file, name, shape=shape, dtype=np.float32, chunks=(rows, *shape[1:]))
        statistics = _Statistics(n_cells, n_variables)
        start = 0
        for values in fields.slabs(max(1, SLAB_BYTES // (4 * n_cells * n_variables))):
            fine_TNV = values[:, order]
            coarse_TMV = block_means(fine_TNV, area_N, sizes[-1])
            stop = start + len(values)
            file["fine"][start:stop], file["coarse"][start:stop] = fine_TNV, coarse_TMV
            count = max(0, train - start)
            statistics.add(fine_TNV[:count], coarse_TMV[:count])
            start = stop
            if progress is not None:
                progress(start, n_steps)
        statistics.write(file)
        text = json.dumps(
            {**config.model_dump(exclude_none=True), "split": split.model_dump()}, sort_keys=True
        )
        origin = fingerprint(source)
        file.attrs.update(
            schema=SCHEMA,
            digest=hashlib.sha256((origin + text).encode()).hexdigest(),
            source_digest=origin,
            code_version=code_version(),
            config=text,
            variables=strings(config.variables),
            units=strings(fields.units),
            levels=config.levels,
            grid=finest.name,
            uuid=finest.uuid or "",
        )
    used = int((ranges[:, 1] - ranges[:, 0]).sum())
    account.keep("times", used)
    account.leave_out("times", "in the gaps between the periods", n_steps - used)
    account.keep("cells", n_cells)
    account.keep("blocks", sizes[-1])
    account.write(output.with_name("samples.json"))


def nested_order(parents: Sequence[Ints], path: Path) -> tuple[Ints, list[int]]:
    """Order [N] of the fine cells in which children follow each other, and how many cells each level has.

    ``parents`` are those of the fine cells, of their parents, and so on; ``path`` is the grid file, for
    messages. Raises `DataError` if a cell does not have four children on the next finer level.
    """
    ancestors = [np.arange(len(parents[0]))]
    for level, parent in enumerate(parents):
        if int(ancestors[-1].max()) >= len(parent):
            raise DataError(
                f"{path}: parent_cell_index names cells that level {level} does not have"
            )
        ancestors.append(parent[ancestors[-1]])
        counts = np.unique(ancestors[-1], return_counts=True)[1]
        wrong = counts != CHILDREN ** (level + 1)
        if wrong.any():
            raise DataError(
                f"{path}: {wrong.sum()} cells {level + 1} levels up have not {CHILDREN ** (level + 1)} "
                f"descendants but for instance {counts[wrong][0]}; blocks need whole cells: cut the grid "
                "along them or lower levels"
            )
    order = np.lexsort(ancestors)
    return order, [len(order) // CHILDREN**level for level in range(len(parents) + 1)]


def block_means(fine_TNV: NDArray, area_N: Floats, n_blocks: int) -> Floats:
    """Area-weighted means over each block, float64[T, M, V]; cells in nested order."""
    weight_MK = area_N.reshape(n_blocks, -1)
    weight_MK = weight_MK / weight_MK.sum(axis=1, keepdims=True)
    blocks = fine_TNV.reshape(len(fine_TNV), *weight_MK.shape, fine_TNV.shape[2])
    return np.einsum("tmkv,mk->tmv", blocks.astype(np.float64), weight_MK)


def neighbours_of_level(neighbours_N3: Ints, level: int, path: Path) -> Ints:
    """Neighbours [cells, 3] of the cells ``level`` refinements up, from those of the fine cells (nested).

    They are -1 where a cell has fewer than three; ``path`` is the grid file, for messages. Raises
    `DataError` if it has more: the refinement is not one of triangles.
    """
    if level == 0:
        return neighbours_N3
    size = CHILDREN**level
    inside = np.arange(len(neighbours_N3)) // size
    pairs = np.column_stack([np.repeat(inside, 3), neighbours_N3.ravel() // size])
    pairs = np.unique(pairs[(neighbours_N3.ravel() >= 0) & (pairs[:, 0] != pairs[:, 1])], axis=0)
    counts = np.bincount(pairs[:, 0], minlength=inside[-1] + 1)
    if counts.max() > 3:
        raise DataError(
            f"{path}: parent_cell_index and neighbor_cell_index disagree: a cell {level} levels up has "
            f"{counts.max()} neighbours, a triangle has three"
        )
    result = np.full((len(counts), 3), -1)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    result[pairs[:, 0], np.arange(len(pairs)) - first[pairs[:, 0]]] = pairs[:, 1]
    return result


class _Statistics:
    """Sums over the training period."""

    def __init__(self, n_cells: int, n_variables: int) -> None:
        self._coarse, self._residual = Moments(n_variables), Moments(n_variables)
        self._sum_NV, self._count = np.zeros((n_cells, n_variables)), 0

    def add(self, fine_TNV: NDArray, coarse_TMV: Floats) -> None:
        if not len(fine_TNV):
            return
        per_block = fine_TNV.shape[1] // coarse_TMV.shape[1]
        residual = fine_TNV - np.repeat(coarse_TMV, per_block, axis=1)
        self._coarse.add(coarse_TMV.reshape(-1, coarse_TMV.shape[2]))
        self._residual.add(residual.reshape(-1, residual.shape[2]))
        self._sum_NV += residual.sum(axis=0)
        self._count += len(fine_TNV)

    def write(self, file: h5py.File) -> None:
        least = MINIMUM_STD * np.maximum(1, np.abs(self._coarse.mean))
        for name, values in (
            ("coarse_mean", self._coarse.mean),
            ("coarse_std", np.maximum(self._coarse.std, least)),
            ("residual_std", np.maximum(self._residual.std, least)),
            ("residual_mean", self._sum_NV / self._count),
        ):
            create_dataset(file, f"stats/{name}", values)


def _write_geometry(file: h5py.File, icon: IconSource, order: Ints, sizes: list[int]) -> None:
    grid = icon.grids[0]
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    neighbours = grid.neighbours_N3[order]
    neighbours = np.where(neighbours >= 0, position[neighbours], -1)
    create_dataset(file, "cell", order + 1)
    create_dataset(file, "geometry/centre", grid.centres_N3[order])
    create_dataset(file, "geometry/area", grid.area_N[order])
    for name, values in (("elevation", grid.elevation_N), ("land", grid.land_N)):
        if values is not None:
            create_dataset(file, f"geometry/{name}", values[order])
    for level in range(len(sizes)):
        create_dataset(
            file, f"neighbours/{level}", neighbours_of_level(neighbours, level, grid.path)
        )
