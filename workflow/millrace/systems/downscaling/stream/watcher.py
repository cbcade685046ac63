"""Chunks of all ranks to output files of ICON, as soon as all of a time are there.

The result is a directory that a dataset with ``format: icon`` can have as its source. Who runs the
workflow again trains on what has come meanwhile.

Shape suffixes: T time steps, N cells, V variables.
"""

import io
import json
import shutil
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from millrace.errors import DataError
from millrace.files import atomic_write
from millrace.systems.downscaling.icon import read_grid
from millrace.systems.downscaling.icon_source import IconGrid

_EPOCH = np.datetime64("1970-01-01T00:00:00")


@dataclass(frozen=True)
class Chunk:
    """A line of a manifest."""

    path: Path
    times: tuple[str, ...]
    bytes: int
    crc32: int

    def read(self) -> dict[str, np.ndarray]:
        """Content of the file; `DataError` if it is not what was written."""
        try:
            content = self.path.read_bytes()
        except OSError:
            raise DataError(f"{self.path}: is in the manifest but not there") from None
        if len(content) != self.bytes or zlib.crc32(content) != self.crc32:
            raise DataError(
                f"{self.path}: is not what its manifest says; remove both lines and file"
            )
        with np.load(io.BytesIO(content)) as file:
            return {name: file[name] for name in file}


class Watcher:
    """Turns finished chunks into output files.

    ``stream`` is the directory of the plug-in, with a folder for each rank; ``grids`` has the grid file of
    the run and those it was refined from, else `DataError` is raised. ``output`` is filled with ``grids/``
    and ``output/chunk_<first time>.nc``.
    """

    def __init__(self, stream: Path, grids: Path, output: Path) -> None:
        self._stream = stream
        paths = sorted(grids.rglob("*.nc"))
        if not paths:
            raise DataError(f"{grids}: no grid file (*.nc) in it")
        self._grid = max(map(read_grid, paths), key=lambda grid: len(grid.lon_N))
        self._folder = output / "output"
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            if not (output / "grids" / path.name).exists():
                with atomic_write(output / "grids" / path.name) as part:
                    shutil.copyfile(path, part)

    def poll(self) -> list[Path]:
        """Write all times that are complete and follow those written; returns the new files."""
        written, last = [], self._last_time()
        for times, chunks in self._groups():
            later = [i for i, time in enumerate(times) if _moment(time) > last]
            if not later:
                continue
            fields = self._assembled(chunks)
            if fields is None:
                break  # a rank is not that far; later chunks wait, so that times stay in order
            variables, values_TNV = fields
            path = self._folder / f"chunk_{''.join(c for c in times[0] if c.isalnum())}.nc"
            if path.exists():  # begun before a restart of the model, and longer now
                path = path.with_stem(f"{path.stem}_{len(times)}")
            _write(path, self._grid, [times[i] for i in later], variables, values_TNV[later])
            written.append(path)
            last = _moment(times[-1])
        return written

    def _groups(self) -> Iterator[tuple[tuple[str, ...], list[Chunk]]]:
        """Chunks of the same times, in order, without those whose times a restarted model wrote anew."""
        groups: dict[tuple[str, ...], list[Chunk]] = defaultdict(list)
        for folder in sorted(self._stream.glob("rank_*")):
            newest = {line.path: line for line in _manifest(folder)}
            for line in newest.values():
                groups[line.times].append(line)
        ranks = max((len(group) for group in groups.values()), default=0)
        whole_times = {t for times, group in groups.items() if len(group) == ranks for t in times}
        for times in sorted(groups, key=lambda times: _moment(times[0])):
            group = groups[times]
            if len(group) == ranks or not whole_times.issuperset(times):
                yield times, group

    def _assembled(self, chunks: list[Chunk]) -> tuple[list[str], np.ndarray] | None:
        """Fields of all cells [T, N, V], or None if some cells are missing."""
        parts = [chunk.read() for chunk in chunks]
        n_cells = len(self._grid.lon_N)
        cells = np.concatenate([part["cell"] for part in parts])
        if len(cells) < n_cells:
            return None
        if len(cells) > n_cells or not np.array_equal(np.sort(cells), np.arange(n_cells)):
            raise DataError(
                f"{chunks[0].path}: the cells of its time are not those of {self._grid.path}, each once; "
                "is that the grid of the run?"
            )
        values = np.concatenate([part["values"] for part in parts], axis=1)
        ordered = np.empty_like(values)
        ordered[:, cells] = values
        return [str(name) for name in parts[0]["variables"]], ordered

    def _last_time(self) -> np.datetime64:
        last = np.datetime64("0001-01-01T00:00:00")
        for path in self._folder.glob("*.nc"):
            with netCDF4.Dataset(path) as file:
                seconds = round(float(file["time"][-1]) * 86_400)
            last = max(last, _EPOCH + np.timedelta64(seconds, "s"))
        return last


def _manifest(folder: Path) -> Iterator[Chunk]:
    path = folder / "manifest.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            values: dict[str, Any] = json.loads(line)
            chunk = folder / values["file"]
            yield Chunk(chunk, tuple(values["times"]), values["bytes"], values["crc32"])
        except (ValueError, KeyError, TypeError):
            continue  # the model was killed while it wrote the line; the chunk comes again


def _moment(time: str) -> np.datetime64:
    return np.datetime64(time.removesuffix("Z"), "s")


def _write(
    path: Path, grid: IconGrid, times: list[str], variables: list[str], values_TNV: np.ndarray
) -> None:
    with atomic_write(path) as part, netCDF4.Dataset(part, "w") as file:
        file.createDimension("time", None)
        file.createDimension("ncells", len(grid.lon_N))
        time = file.createVariable("time", "f8", ("time",))
        time.units, time.calendar = "days since 1970-01-01", "proleptic_gregorian"
        time[:] = [(_moment(t) - _EPOCH) / np.timedelta64(86_400, "s") for t in times]
        for name, values in (("clon", grid.lon_N), ("clat", grid.lat_N)):
            file.createVariable(name, "f8", ("ncells",))[:] = values
            file[name].units = "radian"
        for v, name in enumerate(variables):
            file.createVariable(name, "f4", ("time", "ncells"))[:] = values_TNV[..., v]
            file[name].CDI_grid_type = "unstructured"
        if grid.uuid:
            file.uuidOfHGrid = grid.uuid
