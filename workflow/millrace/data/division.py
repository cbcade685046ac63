"""How raw files are divided among jobs, so that parts stay when files are added, changed or removed.

The division is made when the workflow is planned, and written beside the parts; jobs read it. The first one
has some equal shares. Of later ones, the parts stay whose raw files are as they were; a part of which one
changed, or is gone, is made again, and takes what it took; what is new is shared among new parts. Samples
do not depend on any of this.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from millrace.data.parts import Record
from millrace.data.shares import Share
from millrace.errors import DataError
from millrace.files import atomic_write
from millrace.provenance import raw_items

Items = Mapping[str, tuple[str | int, int]]
"""Stamp and size of raw files by name, see `millrace.provenance.raw_items`."""
Still = Callable[[str, Sequence[Any]], Sequence[bool]]
"""(name of a file that changed, what the system said of it to parts) -> whether they hold what it does."""


@dataclass(frozen=True)
class Ticket:
    """What a part takes."""

    raw: Any
    """Changes when the part has to be made again."""
    index: int = 0
    of: int = 1
    units: list[Any] | None = None
    """What it took, once it was made."""
    rest: bool = False


@dataclass(frozen=True)
class Division:
    """Tickets of all parts by their numbers, and the raw files that they are of."""

    raw: Any
    """Fingerprint of all raw files."""
    tickets: Mapping[int, Ticket]
    seen: Items = field(default_factory=dict)
    """Raw files by name."""

    @classmethod
    def equal(cls, raw: Any, parts: int, seen: Items | None = None) -> Self:
        """Shares of equal numbers of units."""
        return cls(raw, {n: Ticket(raw, n, parts) for n in range(parts)}, seen or {})

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What `write` wrote; None if it is not there."""
        if not path.is_file():
            return None
        found = json.loads(path.read_text())
        tickets = {int(number): Ticket(**one) for number, one in found["tickets"].items()}
        return cls(found["raw"], tickets, found["seen"])

    def write(self, path: Path) -> None:
        """Write it for the jobs, if it is not there already."""
        text = json.dumps(asdict(self))
        if not path.is_file() or path.read_text() != text:
            with atomic_write(path) as partial:
                partial.write_text(text)

    def share(self, part: int) -> Share:
        """What a part takes."""
        mine = self.tickets[part]
        others = (one.units or () for n, one in self.tickets.items() if n != part)
        units = None if mine.units is None else frozenset(mine.units)
        return Share(
            mine.index, mine.of, units, frozenset(u for found in others for u in found), mine.rest
        )

    def follow(
        self,
        raw: Any,
        items: Items,
        made: Callable[[int], Record | None],
        still: Still,
        parts_of: Callable[[int], int],
    ) -> "Division":
        """The division after raw files changed.

        ``made`` says what a part holds, None if it was not made; ``parts_of`` in how many parts so many
        bytes are read.
        """
        stamps = {name: stamp for name, (stamp, _) in items.items()}
        tickets: dict[int, Ticket] = {}
        known: dict[str, set[str | int]] = {}
        again: list[int] = []
        lost = False
        records = {number: made(number) for number in self.tickets}
        as_before = _as_before(records, stamps, still)
        for number, ticket in self.tickets.items():
            record = records[number]
            if record is None:
                lost = True  # its share is divided again
                continue
            there = {name: one for name, one in record.files.items() if name in items}
            if record.files and not there:
                continue
            same = len(there) == len(record.files) and all(
                stamp == stamps[name] or (number, name) in as_before
                for name, (stamp, _) in there.items()
            )
            kept = replace(ticket, units=[*record.units], rest=False)
            tickets[number] = kept if same else replace(kept, raw=raw)
            if not same:
                again.append(number)
            for name, (stamp, _) in there.items():
                # What a part that is made again holds of a file, it takes as it is now.
                known.setdefault(name, set()).add(stamp if same else stamps[name])
        grown = [name for name, found in known.items() if stamps[name] not in found]
        # What was there before, and no part needed, is not new.
        new = [name for name in items if name not in known and (lost or name not in self.seen)]
        if new or grown or lost:
            size = sum(items[name][1] for name in (*new, *grown))
            size -= sum(self.seen[name][1] for name in grown if name in self.seen)
            parts = parts_of(max(0, size))
            first = max([-1, *self.tickets, *tickets]) + 1
            tickets |= {first + n: Ticket(raw, n, parts) for n in range(parts)}
        elif again:
            tickets[again[-1]] = replace(tickets[again[-1]], rest=True)
        return Division(raw, tickets, items)


def _as_before(
    records: Mapping[int, Record | None], stamps: Mapping[str, str | int], still: Still
) -> set[tuple[int, str]]:
    """Parts, and files that changed but not in what the part holds; each file is looked into once."""
    asked: dict[str, dict[int, Any]] = {}
    for number, record in records.items():
        for name, (stamp, told) in record.files.items() if record else ():
            if told is not None and name in stamps and stamp != stamps[name]:
                asked.setdefault(name, {})[number] = told
    return {
        (number, name)
        for name, told in asked.items()
        for number, same in zip(told, still(name, [*told.values()]), strict=True)
        if same
    }


def division_file(folder: Path, kind: str) -> Path:
    """Where the division of samples is written below the folder of a dataset."""
    return folder / f"parts/{kind}.json"


def divide(
    folder: Path,
    stems: Sequence[str],
    source: str,
    *,
    demo: Any,
    asked: int | None,
    planned: bool,
    still: Still,
    sizes: tuple[int, int],
) -> Division | None:
    """Find how raw files are divided; None: samples are made whole.

    Parameters
    ----------
    folder : Path
        Of the dataset's results.
    stems : sequence of str
        Of the parts, the samples' first, then that of a first pass, if it has a name.
    source : str
        Directory of the raw files, or what cannot be looked into.
    demo
        Settings of simulated files, which are as the settings are; None: they are not simulated.
    asked : int, optional
        Number of parts in the configuration.
    planned : bool
        Whether the division of a run that goes on is asked for, which is not changed.
    still : callable
        See `Division.follow`.
    sizes : (int, int)
        Bytes of a part, and the most parts, where none are asked for.
    """
    if asked == 1:
        return None
    kind, before = stems[0], Division.read(division_file(folder, stems[0]))
    there = len([*folder.glob(f"parts/{kind}_*.h5")])
    if before and (planned or not Path(source).is_dir()):  # archived
        return before
    if demo is not None or not Path(source).is_dir():
        parts = asked or (there if demo is None else 1)
        return Division.equal(source if demo is None else demo, parts) if parts > 1 else None
    if not (asked or before or there) and (folder / f"{kind}.h5").is_file():
        return None  # made in one piece before
    raw, items = raw_items(source)
    size = sum(size for _, size in items.values())

    def parts_of(new: int) -> int:
        each = size / asked if asked else sizes[0]
        return min(asked or sizes[1], max(1, math.ceil(new / max(1, each))))

    if before is None:
        parts = asked or parts_of(size)
        return Division.equal(raw, parts, items) if parts > 1 else None

    def made(number: int) -> Record | None:
        files = [folder / f"parts/{stem}_{number}.h5" for stem in stems if stem]
        files = sorted((f for f in files if f.is_file()), key=lambda f: -f.stat().st_mtime_ns)
        found = [record for file in files if (record := Record.read(file))]
        read = {name: one for record in reversed(found) for name, one in record.files.items()}
        return Record(found[0].units, read) if found else None

    return before if before.raw == raw else before.follow(raw, items, made, still, parts_of)


def read_share(path: str | None, part: int, parts: int) -> Share:
    """What a part takes, by the file of the division, or without one a share that equals the others'."""
    if path is None:
        return Share(part, parts)
    division = Division.read(Path(path))
    if division is None:
        raise DataError(f"{path}: not there; it says what parts are of: run the workflow again")
    return division.share(part)
