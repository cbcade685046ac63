"""Blocks: a refined triangular grid in nested order, with fields, block means and real neighbours.

A block is a cell of the grid ``levels`` refinements up with its 4^levels descendants. Cells are renumbered
so that the four children of a cell follow each other on every level: pooling is then a reshape. Who
belongs to whom comes from ``parent_cell_index`` alone, and who is beside whom from
``neighbor_cell_index``.

Ranges of times can be extracted in parts, each in a file of its own (`extract_part`); `gather` makes a file
whose fields are read through to theirs. Everything in it is the same, bit by bit, whatever the number of
parts: statistics are sums over spans of times that are read at once, added in the order of time.

Shape suffixes: N fine cells, M blocks, T time steps, V variables, S spans of times.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from millrace.data.account import Account
from millrace.data.hdf5 import (
    CHUNK_BYTES,
    create,
    create_dataset,
    create_virtual,
    rows_per_chunk,
    strings,
)
from millrace.data.parts import describe_part, open_parts, part_of
from millrace.data.split import MINIMUM_STD, Moments, SplitConfig, time_split
from millrace.errors import DataError
from millrace.provenance import code_version, fingerprint
from millrace.systems.base import Progress
from millrace.systems.downscaling.icon import open_source
from millrace.systems.downscaling.icon_source import (
    FieldScreening,
    Floats,
    IconGrid,
    IconSource,
    Ints,
    refuse_no_data,
)
from millrace.systems.downscaling.pieces import CHILDREN
from millrace.systems.downscaling.settings import BlockConfig
from millrace.systems.settings import MissingConfig

SCHEMA = "millrace.blocks/1"

SLAB_BYTES = 16 << 20
"""Of the fields that are read at once, at least of one time."""
STEPS = 16
"""Times, or more in the last of some spans, whose sum is kept for the mean of each cell."""
PART_SCHEMA = "millrace.blocks_part/1"
_OF_GRID = ("cell", "geometry", "neighbours", "time", "split")
_FIELDS = ("fine", "coarse")


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
    raw = _Raw.open(source, config, split)
    screening = FieldScreening(config.missing)
    total_NV = np.zeros((raw.sizes[0], len(config.variables)))
    with create(output) as file:
        raw.write_grid(file)
        sums = raw.copy(raw.spans, file, partial(_add, total_NV), screening, progress)
        _finish(file, raw.facts(), sums, total_NV, [screening.evidence()])
    raw.account.write(output.with_name("samples.json"))


def extract_part(
    source: Path,
    output: Path,
    config: BlockConfig,
    split: SplitConfig,
    part: int,
    parts: int,
    progress: Progress | None = None,
) -> None:
    """Write the fields of one of several ranges of times, for `gather`.

    ``part`` counts from 0; the first one has the grid as well, and the last ones may be empty. Raises
    errors like `extract_blocks`.
    """
    raw = _Raw.open(source, config, split, lazily=True)
    screening = FieldScreening(config.missing)
    chosen = [raw.groups[group] for group in part_of(len(raw.groups), part, parts)]
    spans = [span for group in chosen for span in group]
    with create(output) as file:
        if part == 0:
            raw.write_grid(file)
        trained = sum(group[0].start < raw.trained for group in chosen)
        shape = (trained, raw.sizes[0], len(config.variables))
        chunks = _chunks((1, *shape[1:]), CHILDREN**config.levels, np.float64)
        sum_SNV = create_dataset(file, "group_sum", shape=shape, dtype=np.float64, chunks=chunks)
        number = iter(range(trained))

        def keep(sum_NV: Floats) -> None:
            sum_SNV[next(number)] = sum_NV

        sums = raw.copy(spans, file, keep, screening, progress)
        for name, values in vars(sums).items():
            create_dataset(file, f"sums/{name}", values)
        all_times = len(raw.icon.fields.time_T)
        first, stop = (spans[0].start, spans[-1].stop) if spans else (all_times, all_times)
        facts = {**raw.facts(), "times": all_times}
        describe_part(file, PART_SCHEMA, facts, range(first, stop))
        file.attrs.update(
            evidence=json.dumps(screening.evidence()),
            account=json.dumps(raw.account.to_json()),
        )


def gather(parts: Sequence[Path], output: Path, progress: Progress | None = None) -> None:
    """Write ``blocks.h5`` of the files of all parts, in which its fields stay.

    ``progress`` is called with (parts done, all). Raises `DataError` if a part is missing, damaged, or not
    of the same raw files and settings as the first.
    """
    sums: list[_Sums] = []
    evidence: list[list[dict[str, Any]]] = []
    shapes: dict[str, list[tuple[Path, tuple[int, ...]]]] = {name: [] for name in _FIELDS}
    account = Account()
    with create(output) as file:
        for path, part, facts_of_all in open_parts(parts, PART_SCHEMA, output, progress):
            facts = facts_of_all
            if not sums:
                account.add(json.loads(part.attrs["account"]))
                total_NV = np.zeros(part["group_sum"].shape[1:])
                for name in _OF_GRID:
                    part.copy(name, file)
            for at in range(len(part["group_sum"])):
                total_NV += part["group_sum"][at]
            sums.append(_Sums(**{name: part["sums"][name][()] for name in part["sums"]}))
            evidence.append(json.loads(part.attrs["evidence"]))
            for name in _FIELDS:
                shapes[name].append((path, part[name].shape))
        for name in _FIELDS:
            create_virtual(file, name, shapes[name], np.float32, output.parent)
        _finish(file, facts, _Sums.joined(sums), total_NV, evidence)
    account.write(output.with_name("samples.json"))


@dataclass(frozen=True, eq=False)
class _Sums:
    """What statistics are made of, by spans of times; of the training period only."""

    steps: Ints
    """Times of each span, [S]."""
    term: Floats
    """Sums of block means and of their squares, then those of what cells differ from them by, all less
    ``shift``, [S, 4, V]."""
    shift: Floats
    """Means of both over the first span, [2, V]."""

    @classmethod
    def joined(cls, sums: "Sequence[_Sums]") -> "_Sums":
        """Those of all ranges, in the order of time."""
        steps, term = (
            np.concatenate([getattr(s, name) for s in sums]) for name in ("steps", "term")
        )
        return cls(steps, term, sums[0].shift)


@dataclass(frozen=True, eq=False)
class _Raw:
    """Raw files, opened, and what is taken from them."""

    source: Path
    config: BlockConfig
    split: SplitConfig
    icon: IconSource
    ranges: Ints
    order_N: Ints
    sizes: list[int]
    """Cells of each level, from the fine ones to the blocks."""
    account: Account

    @classmethod
    def open(
        cls, source: Path, config: BlockConfig, split: SplitConfig, lazily: bool = False
    ) -> "_Raw":
        account = Account()
        icon = open_source(source, config.variables, config.levels, config.missing, account, lazily)
        ranges = time_split(len(icon.fields.time_T), split)
        order_N, sizes = nested_order([grid.parent_N for grid in icon.grids], icon.grids[0].path)
        used = int((ranges[:, 1] - ranges[:, 0]).sum())
        account.keep("times", used)
        left_out = len(icon.fields.time_T) - used
        account.leave_out("times", "in the gaps between the periods", left_out)
        account.keep("cells", sizes[0])
        account.keep("blocks", sizes[-1])
        return cls(source, config, split, icon, ranges, order_N, sizes, account)

    @property
    def trained(self) -> int:
        """Times of the training period, which is at the beginning."""
        return int(self.ranges[0, 1])

    @property
    def steps(self) -> int:
        """Most times of a span."""
        return max(1, SLAB_BYTES // (4 * self.sizes[0] * len(self.config.variables)))

    @cached_property
    def spans(self) -> list[range]:
        """Times that are read at once."""
        return self.icon.fields.spans(self.steps)

    @cached_property
    def groups(self) -> list[list[range]]:
        """Spans, together until they have at least `STEPS` times."""
        groups: list[list[range]] = []
        for span in self.spans:
            if not groups or sum(map(len, groups[-1])) >= STEPS:
                groups.append([])
            groups[-1].append(span)
        return groups

    def facts(self) -> dict[str, Any]:
        """What describes the samples and is the same in all parts."""
        settings = self.config.model_dump(exclude_none=True)
        text = json.dumps({**settings, "split": self.split.model_dump()}, sort_keys=True)
        origin, finest = fingerprint(self.source), self.icon.grids[0]
        axes = hashlib.sha256(self.icon.fields.time_T.tobytes())
        axes.update(self.order_N.tobytes())
        return {
            "digest": hashlib.sha256((origin + text).encode()).hexdigest(),
            "source_digest": origin,
            "config": text,
            "variables": list(self.config.variables),
            "units": list(self.icon.fields.units),
            "levels": self.config.levels,
            "grid": finest.name,
            "uuid": finest.uuid or "",
            "axes": axes.hexdigest(),
        }

    def write_grid(self, file: h5py.File) -> None:
        """Write what is not of single times."""
        _write_geometry(file, self.icon.grids[0], self.order_N, self.sizes)
        create_dataset(file, "time", self.icon.fields.time_T)
        create_dataset(file, "split", self.ranges)

    def copy(
        self,
        spans: Sequence[range],
        file: h5py.File,
        on_group: Callable[[Floats], None],
        screening: FieldScreening,
        progress: Progress | None,
    ) -> _Sums:
        """Write the fields of whole groups of spans.

        ``on_group`` is called with the sum over each group of what cells differ from their block by.
        """
        n_steps, n_variables = sum(map(len, spans)), len(self.config.variables)
        for name, size in zip(_FIELDS, (self.sizes[0], self.sizes[-1]), strict=True):
            shape = (n_steps, size, n_variables)
            together = self.sizes[0] // self.sizes[-1] if name == "fine" else 1
            chunks = _chunks(shape, together, np.float32)
            create_dataset(file, name, shape=shape, dtype=np.float32, chunks=chunks)
        ends = {group[-1].stop for group in self.groups}
        sum_NV = np.zeros((self.sizes[0], n_variables))
        shift, steps, terms = self._shift() if spans and spans[0].start else None, [], []
        for span, (fine_TNV, coarse_TMV) in zip(spans, self._fields(spans, screening), strict=True):
            at = slice(span.start - spans[0].start, span.stop - spans[0].start)
            file["fine"][at], file["coarse"][at] = fine_TNV, coarse_TMV
            if count := max(0, min(self.trained, span.stop) - span.start):
                columns, residual_TNV = _columns(fine_TNV[:count], coarse_TMV[:count])
                shift = [Moments.shift_of(one) for one in columns] if shift is None else shift
                pairs = zip(columns, shift, strict=True)
                terms.append([term for one, by in pairs for term in Moments.terms(one, by)])
                steps.append(count)
                sum_NV += residual_TNV.sum(axis=0)
                if span.stop in ends or span.stop >= self.trained:
                    on_group(sum_NV)
                    sum_NV[:] = 0
            if progress is not None:
                progress(at.stop, n_steps)
        return _Sums(
            np.array(steps, dtype=np.int64),
            np.array(terms).reshape(-1, 4, n_variables),
            np.zeros((2, n_variables)) if shift is None else np.array(shift),
        )

    def _shift(self) -> list[Floats]:
        """Means over the first span: all parts take them from the same times."""
        first = self.spans[:1]
        [(fine_TNV, coarse_TMV)] = self._fields(first, FieldScreening(self.config.missing))
        count = min(self.trained, len(fine_TNV))
        columns, _ = _columns(fine_TNV[:count], coarse_TMV[:count])
        return [Moments.shift_of(one) for one in columns]

    def _fields(
        self, spans: Sequence[range], screening: FieldScreening
    ) -> Iterator[tuple[NDArray[np.float32], Floats]]:
        """Cells in nested order and block means, of spans that follow each other."""
        if not spans:
            return
        times, area_N = (
            range(spans[0].start, spans[-1].stop),
            self.icon.grids[0].area_N[self.order_N],
        )
        for values in self.icon.fields.slabs(self.steps, times, screening):
            fine_TNV = values[:, self.order_N]
            yield fine_TNV, block_means(fine_TNV, area_N, self.sizes[-1])


def _columns(fine_TNV: NDArray, coarse_TMV: Floats) -> tuple[tuple[Floats, Floats], Floats]:
    """Block means and what cells differ from them by, as rows of variables; the latter also by cells."""
    per_block = fine_TNV.shape[1] // coarse_TMV.shape[1]
    residual = fine_TNV - np.repeat(coarse_TMV, per_block, axis=1)
    n_variables = residual.shape[2]
    return (coarse_TMV.reshape(-1, n_variables), residual.reshape(-1, n_variables)), residual


def _chunks(shape: tuple[int, ...], together: int, dtype: DTypeLike) -> tuple[int, ...]:
    """Chunks of fields: all cells of some times, or on large grids whole blocks at one time.

    ``together`` are the cells of a block: of large grids only some blocks are read at once.
    """
    row = shape[1] * shape[2] * np.dtype(dtype).itemsize
    if row <= CHUNK_BYTES:
        return (rows_per_chunk(shape, dtype), *shape[1:])
    cells = max(1, rows_per_chunk((shape[1] // together, together * shape[2]), dtype)) * together
    return (1, cells, shape[2])


def _add(total_NV: Floats, sum_NV: Floats) -> None:
    total_NV += sum_NV


def _finish(
    file: h5py.File,
    facts: dict[str, Any],
    sums: _Sums,
    total_NV: Floats,
    evidence: Sequence[list[dict[str, Any]]],
) -> None:
    """Add statistics and attributes; refuses no-data values."""
    given = json.loads(facts["config"]).get("missing")
    refuse_no_data(evidence, None if given is None else MissingConfig.parse(given, "missing"))
    coarse, residual = (
        Moments.of_terms(
            np.multiply(sums.steps[:, None], file[name].shape[1], dtype=np.float64),
            sums.shift[i],
            sums.term[:, 2 * i],
            sums.term[:, 2 * i + 1],
        )
        for i, name in enumerate(("coarse", "fine"))
    )
    least = MINIMUM_STD * np.maximum(1, np.abs(coarse.mean))
    for name, values in (
        ("coarse_mean", coarse.mean),
        ("coarse_std", np.maximum(coarse.std, least)),
        ("residual_std", np.maximum(residual.std, least)),
        ("residual_mean", total_NV / sums.steps.sum()),
    ):
        create_dataset(file, f"stats/{name}", values)
    names = ("digest", "source_digest", "config", "levels", "grid", "uuid")
    file.attrs.update(
        schema=SCHEMA,
        code_version=code_version(),
        variables=strings(facts["variables"]),
        units=strings(facts["units"]),
        **{name: facts[name] for name in names},
    )


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


def neighbours_above(finer_N3: Ints, level: int, path: Path) -> Ints:
    """Neighbours [cells, 3] of the parents of cells with neighbours ``finer_N3``, in nested order.

    They are -1 where a cell has fewer than three; ``path`` is the grid file and ``level`` how many
    refinements up the parents are, for messages. Raises `DataError` if a cell has more: the refinement is
    not one of triangles.
    """
    n_parents = len(finer_N3) // CHILDREN
    own = np.repeat(np.arange(len(finer_N3)) // CHILDREN, 3)
    other = finer_N3.ravel() // CHILDREN
    across = (finer_N3.ravel() >= 0) & (own != other)
    own, other = np.divmod(np.unique(own[across] * n_parents + other[across]), n_parents)
    counts = np.bincount(own, minlength=n_parents)
    if counts.max() > 3:
        raise DataError(
            f"{path}: parent_cell_index and neighbor_cell_index disagree: a cell {level} levels up has "
            f"{counts.max()} neighbours, a triangle has three"
        )
    result = np.full((n_parents, 3), -1)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    result[own, np.arange(len(own)) - first[own]] = other
    return result


def _write_geometry(file: h5py.File, grid: IconGrid, order: Ints, sizes: list[int]) -> None:
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
        if level:
            neighbours = neighbours_above(neighbours, level, grid.path)
        create_dataset(file, f"neighbours/{level}", neighbours)
