"""Files of parts of samples: what each says of itself, and all of them in the order of their units.

What a part takes is decided when the workflow is planned (`millrace.data.division`); what it took, and of
which files, stands in its file. Units of parts may lie between each other, as those of files that were
added later: gathering puts them in the order of all.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from millrace.data.hdf5 import create_dataset, open_checked, reading
from millrace.data.shares import Unit
from millrace.errors import DataError
from millrace.provenance import stamp
from millrace.systems.base import Progress


def write_json(file: h5py.Group, name: str, value: object) -> None:
    """Store plain values in an HDF5 file, however many."""
    text = json.dumps(value, sort_keys=True).encode()
    create_dataset(file, name, np.frombuffer(text, dtype=np.uint8))


def read_json(file: h5py.Group, name: str) -> Any:
    """Read what `write_json` stored."""
    return json.loads(file[name][()].tobytes())


@dataclass(frozen=True)
class Record:
    """What a part says of itself."""

    units: tuple[Unit, ...]
    """Those it holds, in their order."""
    files: Mapping[str, tuple[Any, Any]]
    """What they were read from, relative to the directory of raw files, and the `stamp` of each; the second
    is what the system says of that in it which the part holds, see `RawFormat.still`, or None."""

    @classmethod
    def of(
        cls,
        source: Path,
        units: Sequence[Unit],
        files: Iterable[Path],
        signatures: Mapping[Path, Any] | None = None,
    ) -> "Record":
        """That of a part of the directory ``source`` of raw files."""
        told = signatures or {}
        found = {os.path.relpath(one, source): (stamp(one), told.get(one)) for one in {*files}}
        return cls(tuple(units), found)

    def write(self, file: h5py.File, schema: str, facts: Mapping[str, Any]) -> None:
        """Store it, with ``facts`` that are the same in all parts."""
        write_json(file, "record", {"units": self.units, "files": self.files})
        file.attrs.update(schema=schema, facts=json.dumps(facts, sort_keys=True))

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """That of a part; None if the file is none, or of an earlier version."""
        with suppress(DataError, OSError), reading(path), h5py.File(path, "r") as file:
            if "record" in file:
                return cls.in_part(file)
        return None

    @classmethod
    def in_part(cls, file: h5py.File) -> "Record":
        """That of a part that is open."""
        found = read_json(file, "record")
        return cls(tuple(found["units"]), {k: tuple(v) for k, v in found["files"].items()})


def digest_of(*arrays: np.ndarray) -> str:
    """Hash of the content of arrays, for facts."""
    content = hashlib.sha256()
    for one in arrays:
        content.update(np.ascontiguousarray(one).data)
    return content.hexdigest()


Bounds = Callable[[h5py.File], np.ndarray]


class Parts:
    """All parts of samples, open, in the order of their units.

    ``units`` are those that the raw files hold, in their order; None: those that the parts have, sorted.
    ``facts`` are what the parts must say. Raises `DataError` if a part is missing, damaged, or of other
    settings, or some unit is in none or in two of them.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        schema: str,
        output: Path,
        facts: Mapping[str, Any],
        units: Sequence[Unit] | None,
        progress: Progress | None = None,
    ) -> None:
        self.files: list[h5py.File] = []
        self._stack = ExitStack()
        held: dict[Unit, tuple[int, int]] = {}
        wanted = json.loads(json.dumps(facts))
        try:
            for number, path in enumerate(paths):
                part = self._stack.enter_context(open_checked(path, schema))
                found = json.loads(part.attrs["facts"])
                if found != wanted:
                    what = ", ".join(k for k in wanted if found.get(k) != wanted[k])
                    raise DataError(
                        f"{path}: of other raw files or settings ({what}); delete it and make it again"
                    )
                mine = Record.in_part(part).units
                for at, unit in enumerate(mine):
                    if unit in held:
                        other = paths[held[unit][0]]
                        raise DataError(
                            f"{path}: holds {unit}, as {other} does; delete {path.parent} and make its "
                            "parts again"
                        )
                    held[unit] = number, at
                self.files.append(part)
                if progress is not None:
                    progress(number + 1, len(paths))
            self.units: list[Unit] = sorted(held) if units is None else [*units]
            lacking = [unit for unit in self.units if unit not in held]
            if lacking or len(held) > len(self.units) or not held:
                odd = (
                    lacking or [unit for unit in held if unit not in {*self.units}] or ["anything"]
                )
                raise DataError(
                    f"{output}: its parts do not hold what the raw files do, such as {odd[0]}; run the "
                    f"workflow again, or delete {output.parent / 'parts'}"
                )
        except BaseException:
            self._stack.close()
            raise
        self.paths = [*paths]
        self.places = [held[unit] for unit in self.units]
        """Part of each unit, and its number in that."""

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def in_order(self) -> list[h5py.File]:
        """Parts by their first units; those without any come last."""
        firsts = {part: number for number, (part, _) in reversed([*enumerate(self.places)])}
        order = sorted(range(len(self.files)), key=lambda part: firsts.get(part, len(self.units)))
        return [self.files[part] for part in order]

    @cached_property
    def _stretches(self) -> list[tuple[int, int, int]]:
        """Units that follow on each other in a part as among all: part, the first in it, and how many."""
        found: list[tuple[int, int, int]] = []
        for part, at in self.places:
            if found and found[-1][0] == part and sum(found[-1][1:]) == at:
                found[-1] = part, found[-1][1], found[-1][2] + 1
            else:
                found.append((part, at, 1))
        return found

    def rows(self, name: str, bounds: Bounds | None = None) -> np.ndarray:
        """A dataset of all parts in the order of all units.

        ``bounds`` gives the rows of the units of a part, [units + 1]; None: each has one.
        """
        return np.concatenate([*self.pieces(name, bounds)])

    def pieces(self, name: str, bounds: Bounds | None = None) -> Iterator[np.ndarray]:
        """The same piece by piece."""
        for part, rows in self._ranges(bounds):
            yield self.files[part][name][rows.start : rows.stop]

    def virtual(
        self, name: str, bounds: Bounds | None = None
    ) -> list[tuple[Path, tuple[int, ...], range]]:
        """The same left where it is, for `millrace.data.hdf5.create_virtual`."""
        return [
            (self.paths[part], self.files[part][name].shape, rows)
            for part, rows in self._ranges(bounds)
            if name in self.files[part]
        ]

    def _ranges(self, bounds: Bounds | None) -> list[tuple[int, range]]:
        """Parts, and rows of them, in the order of all units."""
        if bounds is None:
            return [(p, range(first, first + n)) for p, first, n in self._stretches]
        edges = {part: bounds(self.files[part]) for part, *_ in self._stretches}
        return [
            (part, range(int(edges[part][first]), int(edges[part][first + n])))
            for part, first, n in self._stretches
        ]

    def located(self, bounds: Bounds) -> list[tuple[h5py.File, int]]:
        """Part, and row in it, of each row of all units."""
        return [(self.files[part], n) for part, rows in self._ranges(bounds) for n in rows]

    def row(self, name: str, unit: int) -> np.ndarray:
        """The row of one unit."""
        part, at = self.places[unit]
        return np.asarray(self.files[part][name][at])

    def remove_others(self) -> None:
        """Remove files of parts that these were instead of: of raw files that are gone."""
        stem = self.paths[0].name.rpartition("_")[0]
        for path in self.paths[0].parent.glob(f"*{stem}_*.h5"):
            name = path.name.removeprefix(".")
            is_part = name.removeprefix(f"{stem}_").removesuffix(".h5").isdecimal()
            if name.startswith(f"{stem}_") and is_part and path.with_name(name) not in self.paths:
                path.unlink()
                print(f"{path}: removed, its raw files are gone")


def keep(part: Path) -> None:
    """Keep what a part holds when it is removed to be made again, see `kept`; where links can be made."""
    hidden = part.with_name(f".{part.name}")
    with suppress(OSError):
        hidden.unlink(missing_ok=True)
        os.link(part, hidden)


def kept(part: Path, schema: str, facts: Mapping[str, Any], before: Path, both: Path) -> bool:
    """Put back a part that only `both`, which all parts depend on, was a reason to make again.

    That is so where ``before``, made of the same raw files, is older than the part, ``both`` was made again
    since, and the ``facts`` of the part, with the content of ``both``, are as before. What is forced or was
    deleted is made again.
    """
    hidden = part.with_name(f".{part.name}")
    with suppress(OSError, DataError):
        made, sample, common = (one.stat().st_mtime_ns for one in (hidden, before, both))
        if not sample <= made < common:
            return False
        with open_checked(hidden, schema) as file:
            if file.attrs["facts"] != json.dumps(facts, sort_keys=True):
                print(f"{part}: made again, as {both.name} holds something else than before")
                return False
        os.link(hidden, part)
        os.utime(part)
        print(f"{part}: kept, {both.name} holds what it held before")
        return True
    return False


def forget(folder: Path, stem: str) -> None:
    """Do not keep parts that were deleted, by their user."""
    for hidden in folder.glob(f".{stem}_*.h5"):
        if not hidden.with_name(hidden.name[1:]).is_file():
            hidden.unlink()
