"""Blocks: a refined triangular grid in nested order, with fields, block means and real neighbours.

A block is a cell of the grid ``levels`` refinements up with its 4^levels descendants. Cells are renumbered
so that the four children of a cell follow each other on every level: pooling is then a reshape. Who
belongs to whom comes from ``parent_cell_index`` alone, and who is beside whom from
``neighbor_cell_index``.

Times can be extracted in parts, each in a file of its own (`extract_part`); `gather` makes a file whose
fields are read through to theirs. Parts know neither the split nor each other. Everything in the file is
the same, bit by bit, whatever the parts: statistics are sums over spans of times that are read at once,
added in the order of time. Where the training period or a group of spans does not end with a part, they are
made of its fields.

Shape suffixes: N fine cells, M blocks, T time steps, V variables, S spans of times.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
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
from millrace.data.parts import Parts, Record, digest_of, read_json, write_json
from millrace.data.shares import Share
from millrace.data.split import MINIMUM_STD, Moments, SplitConfig, time_split
from millrace.provenance import code_version, fingerprint
from millrace.systems.base import Progress
from millrace.systems.downscaling.icon import open_source
from millrace.systems.downscaling.icon_source import (
    Fields,
    FieldScreening,
    Floats,
    IconSource,
    Ints,
    refuse_no_data,
)
from millrace.systems.downscaling.nesting import block_means, nested_order, write_geometry
from millrace.systems.downscaling.pieces import CHILDREN
from millrace.systems.downscaling.settings import BlockConfig

SCHEMA = "millrace.blocks/1"

SLAB_BYTES = 16 << 20
"""Of the fields that are read at once, at least of one time."""
STEPS = 16
"""Times, or more in the last of some spans, whose sum is kept for the mean of each cell."""
PART_SCHEMA = "millrace.blocks_part/2"
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
    raw = _Raw.open(source, config)
    ranges = raw.divided(split)
    trained = int(ranges[0, 1])
    screening = FieldScreening(config.missing)
    total_NV = np.zeros((raw.sizes[0], len(config.variables)))
    with create(output) as file:
        raw.write_grid(file, ranges)
        fields, groups = raw.icon.fields, raw.groups
        add = partial(_add, total_NV)
        sums = raw.copy(fields, groups, trained, file, add, screening, progress, trained)
        raw.finish(file, split, sums, total_NV, [screening.evidence()])
    raw.account.write(output.with_name("samples.json"))


def extract_part(
    source: Path,
    output: Path,
    config: BlockConfig,
    share: Share,
    progress: Progress | None = None,
) -> None:
    """Write the fields of a share of the times, or of CSV of the files, for `gather`.

    Raises errors like `extract_blocks`.
    """
    raw = _Raw.open(source, config, lazily=True)
    every, screening = raw.icon.fields, FieldScreening(config.missing)
    cuts = None if isinstance(every.keys[0], str) else {group[0].start for group in raw.groups}
    numbers = share.taken(every.keys, cuts)
    fields, groups, bounds = every.part(numbers, raw.steps, STEPS)
    times = [time for group in groups for span in group for time in span]
    time_T = fields.time_T[times]
    with create(output) as file:
        shape = (len(groups), raw.sizes[0], len(config.variables))
        chunks = _chunks((1, *shape[1:]), CHILDREN**config.levels, np.float64)
        sum_SNV = create_dataset(file, "group_sum", shape=shape, dtype=np.float64, chunks=chunks)
        number = iter(range(len(groups)))

        def keep(sum_NV: Floats) -> None:
            sum_SNV[next(number)] = sum_NV

        end = max(times, default=0) + 1
        sums = raw.copy(fields, groups, end, file, keep, screening, progress)
        for name, values in vars(sums).items():
            create_dataset(file, f"sums/{name}", values)
        spans = [span for group in groups for span in group]
        at = np.array([span.start for span in spans], dtype=np.int64)
        number_S = [number for number, group in enumerate(groups) for _ in group]
        create_dataset(file, "spans/time", fields.time_T[at] if spans else np.empty(0))
        create_dataset(file, "spans/group", number_S, dtype=np.int64)
        create_dataset(file, "time", time_T)
        create_dataset(file, "bounds", bounds, dtype=np.int64)
        files = fields.read_from(times) + [grid.path for grid in raw.icon.grids] if times else []
        keys = [every.keys[n] for n in numbers]
        Record.of(source, keys, files).write(file, PART_SCHEMA, raw.facts())
        write_json(file, "evidence", screening.evidence())


def gather(
    parts: Sequence[Path],
    source: Path,
    output: Path,
    config: BlockConfig,
    split: SplitConfig,
    progress: Progress | None = None,
) -> None:
    """Write ``blocks.h5`` of the files of all parts, in which its fields stay.

    Of the raw files the grids and, unless they are CSV, the axes of time are read. ``progress`` is called
    with (parts done, all). Raises `DataError` if a part is missing, damaged, or not of the same raw files
    and settings.
    """
    raw = _Raw.open(source, config, lazily=True)
    every = Parts(parts, PART_SCHEMA, output, raw.facts(), raw.icon.fields.keys, progress)
    with create(output) as file, every:
        raw.icon.fields.know(_lengths(every), every.rows("time", _bounds))
        ranges = raw.divided(split)
        raw.write_grid(file, ranges)
        for name in _FIELDS:
            create_virtual(file, name, every.virtual(name, _bounds), np.float32, output.parent)
        fields, trained = _FieldsOfParts(raw, every), int(ranges[0, 1])
        evidence = [read_json(part, "evidence") for part in every.in_order()]
        raw.finish(file, split, fields.sums(trained), fields.total(trained), evidence)
    raw.account.write(output.with_name("samples.json"))
    every.remove_others()


def _bounds(part: h5py.File) -> Ints:
    """Bounds of the times of each key of a part."""
    return np.asarray(part["bounds"][()])


def _lengths(parts: Parts) -> list[int]:
    """Times of each key, in the order of all."""
    lengths = [np.diff(_bounds(part)) for part in parts.files]
    return [int(lengths[part][at]) for part, at in parts.places]


class _FieldsOfParts:
    """Sums of all parts, completed where a part could not know what they are made of."""

    def __init__(self, raw: "_Raw", parts: Parts) -> None:
        self._raw, self._parts = raw, parts
        self._at = parts.located(_bounds)

    def _fields(self, span: range) -> tuple[NDArray[np.float32], Floats]:
        fine_TNV = np.stack([file["fine"][row] for file, row in (self._at[t] for t in span)])
        # In the same order in memory as those that were read, on which the last digits of sums depend.
        fine_TNV = fine_TNV[:, np.arange(fine_TNV.shape[1])]
        return fine_TNV, self._raw.means(fine_TNV)

    @cached_property
    def _spans(self) -> list[tuple[h5py.File, NDArray[np.float64], Ints, Ints]]:
        """Of each part, when its spans begin, their lengths, and the group of each."""
        return [
            (file, file["spans/time"][()], file["sums/steps"][()], file["spans/group"][()])
            for file in self._parts.files
        ]

    def _times(self, spans: Sequence[range]) -> tuple[tuple[float, int], ...]:
        """By what spans are known in all parts."""
        time_T = self._raw.icon.fields.time_T
        return tuple((float(time_T[span.start]), len(span)) for span in spans)

    def sums(self, trained: int) -> "_Sums":
        """Sums over the spans of the training period."""
        stored = {
            (float(time), int(steps)): (file, at)
            for file, time_S, steps_S, _ in self._spans
            for at, (time, steps) in enumerate(zip(time_S, steps_S, strict=True))
        }
        steps, terms = [], []
        spans = [span for group in self._raw.groups for span in group]
        # Of the training period alone, or later values would decide the last digits.
        first = self._fields(spans[0][: max(1, trained)])
        shift = [Moments.shift_of(one) for one in _columns(*first)[0]]
        fits = {f: np.array_equal(f["sums/shift"][()], np.array(shift)) for f in self._parts.files}
        for span in spans:
            used = span[: max(0, trained - span.start)]
            if not used:
                break
            place = stored.get(*self._times([used]))
            if place is not None and fits[place[0]]:
                terms.append(place[0]["sums/term"][place[1]])
            else:
                terms.append(_terms(_columns(*self._fields(used))[0], shift))
            steps.append(len(used))
        return _Sums(np.array(steps, dtype=np.int64), np.array(terms), np.array(shift))

    def total(self, trained: int) -> Floats:
        """Sum of what cells differ from their block by."""
        total_NV = np.zeros((self._raw.sizes[0], len(self._raw.config.variables)))
        stored = {}
        for file, time_S, steps_S, group_S in self._spans:
            for group in np.unique(group_S):
                mine = group_S == group
                key = tuple(zip(time_S[mine].tolist(), steps_S[mine].tolist(), strict=True))
                stored[key] = file, int(group)
        for spans in self._raw.groups:
            used = [one for span in spans if (one := span[: max(0, trained - span.start)])]
            place = stored.get(self._times(used))
            if place is not None:
                total_NV += place[0]["group_sum"][place[1]]
            elif used:
                sum_NV = np.zeros_like(total_NV)
                for span in used:
                    sum_NV += _columns(*self._fields(span))[1].sum(axis=0)
                total_NV += sum_NV
        return total_NV


@dataclass(frozen=True, eq=False)
class _Sums:
    """What statistics are made of, by spans of times; of the training period only."""

    steps: Ints
    """Times of each span, [S]."""
    term: Floats
    """Sums of block means and of their squares, then those of what cells differ from them by, all less
    ``shift``, [S, 4, V]."""
    shift: Floats
    """Means of both over the first span, or over its times of training where the split is known, [2, V]."""


@dataclass(frozen=True, eq=False)
class _Raw:
    """Raw files, opened, and what is taken from them."""

    source: Path
    config: BlockConfig
    icon: IconSource
    order_N: Ints
    sizes: list[int]
    """Cells of each level, from the fine ones to the blocks."""
    account: Account

    @classmethod
    def open(cls, source: Path, config: BlockConfig, lazily: bool = False) -> "_Raw":
        account = Account()
        icon = open_source(source, config.variables, config.levels, account, lazily)
        order_N, sizes = nested_order([grid.parent_N for grid in icon.grids], icon.grids[0].path)
        account.keep("cells", sizes[0])
        account.keep("blocks", sizes[-1])
        return cls(source, config, icon, order_N, sizes, account)

    def divided(self, split: SplitConfig) -> Ints:
        """Times of training, validation and test, which are counted."""
        ranges = time_split(len(self.icon.fields.time_T), split)
        used = int((ranges[:, 1] - ranges[:, 0]).sum())
        self.account.keep("times", used)
        left_out = len(self.icon.fields.time_T) - used
        self.account.leave_out("times", "in the gaps between the periods", left_out)
        return ranges

    @property
    def steps(self) -> int:
        """Most times of a span."""
        return max(1, SLAB_BYTES // (4 * self.sizes[0] * len(self.config.variables)))

    @cached_property
    def groups(self) -> list[list[range]]:
        """Times that are read at once, together until they have at least `STEPS`."""
        return self.icon.fields.groups(self.steps, STEPS)

    def facts(self) -> dict[str, Any]:
        """What describes the fields and is the same in all parts."""
        finest = self.icon.grids[0]
        return {
            "config": self.config.model_dump(mode="json", exclude_none=True),
            "units": list(self.icon.fields.units),
            "grid": finest.name,
            "cells": digest_of(self.order_N, finest.centres_N3, finest.area_N),
        }

    def write_grid(self, file: h5py.File, ranges: Ints) -> None:
        """Write what is not of single times."""
        write_geometry(file, self.icon.grids[0], self.order_N, self.sizes)
        create_dataset(file, "time", self.icon.fields.time_T)
        create_dataset(file, "split", ranges)

    def copy(
        self,
        fields: Fields,
        groups: Sequence[Sequence[range]],
        summed: int,
        file: h5py.File,
        on_group: Callable[[Floats], None],
        screening: FieldScreening,
        progress: Progress | None,
        known: int | None = None,
    ) -> _Sums:
        """Write fields of groups of times.

        Sums are of those before number ``summed``, less what those of the first span among all times before
        number ``known`` have as means; parts, which do not know the split, take all of that span.
        ``on_group`` is called with the sum over each group of what cells differ from their block by.
        """
        spans = [span for group in groups for span in group]
        n_steps, n_variables = sum(map(len, spans)), len(self.config.variables)
        for name, size in zip(_FIELDS, (self.sizes[0], self.sizes[-1]), strict=True):
            shape = (n_steps, size, n_variables)
            together = self.sizes[0] // self.sizes[-1] if name == "fine" else 1
            chunks = _chunks(shape, together, np.float32)
            create_dataset(file, name, shape=shape, dtype=np.float32, chunks=chunks)
        ends = {group[-1].stop for group in groups}
        sum_NV = np.zeros((self.sizes[0], n_variables))
        shift, steps, terms, done = self._shift(known) if spans else [], [], [], 0
        for span, values in zip(spans, fields.slabs(spans, screening), strict=True):
            fine_TNV = values[:, self.order_N]
            coarse_TMV = self.means(fine_TNV)
            at = slice(done, done + len(span))
            file["fine"][at], file["coarse"][at] = fine_TNV, coarse_TMV
            done += len(span)
            if count := max(0, min(summed, span.stop) - span.start):
                columns, residual_TNV = _columns(fine_TNV[:count], coarse_TMV[:count])
                terms.append(_terms(columns, shift))
                steps.append(count)
                sum_NV += residual_TNV.sum(axis=0)
                if span.stop in ends or span.stop >= summed:
                    on_group(sum_NV)
                    sum_NV[:] = 0
            if progress is not None:
                progress(done, n_steps)
        return _Sums(
            np.array(steps, dtype=np.int64),
            np.array(terms).reshape(-1, 4, n_variables),
            np.array(shift).reshape(-1, n_variables),
        )

    def _shift(self, known: int | None) -> list[Floats]:
        """Means over the first span, or its times before number ``known``."""
        values = self.icon.fields.first(self.steps, FieldScreening(self.config.missing))[:known]
        fine_TNV = values[:, self.order_N]
        columns, _ = _columns(fine_TNV, self.means(fine_TNV))
        return [Moments.shift_of(one) for one in columns]

    def means(self, fine_TNV: NDArray[np.float32]) -> Floats:
        """Means over each block."""
        return block_means(fine_TNV, self.icon.grids[0].area_N[self.order_N], self.sizes[-1])

    def finish(
        self,
        file: h5py.File,
        split: SplitConfig,
        sums: _Sums,
        total_NV: Floats,
        evidence: Sequence[list[dict[str, Any]]],
    ) -> None:
        """Add statistics and attributes; refuses no-data values."""
        refuse_no_data(evidence, self.config.missing)
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
        settings = self.config.model_dump(exclude_none=True)
        text = json.dumps({**settings, "split": split.model_dump()}, sort_keys=True)
        origin, finest = fingerprint(self.source), self.icon.grids[0]
        file.attrs.update(
            schema=SCHEMA,
            code_version=code_version(),
            variables=strings(self.config.variables),
            units=strings(self.icon.fields.units),
            digest=hashlib.sha256((origin + text).encode()).hexdigest(),
            source_digest=origin,
            config=text,
            levels=self.config.levels,
            grid=finest.name,
            uuid=finest.uuid or "",
        )


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


def _terms(columns: Sequence[Floats], shift: Sequence[Floats]) -> list[Floats]:
    """Sums of both columns and of their squares, less ``shift``."""
    pairs = zip(columns, shift, strict=True)
    return [term for one, by in pairs for term in Moments.terms(one, by)]
