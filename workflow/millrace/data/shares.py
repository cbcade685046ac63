"""Which units of the raw files a part of samples takes.

A unit is the least that is extracted: a file, or a time.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

Unit = int | float | str
"""Name of a unit, which stays when files are added."""


def part_of(units: int, part: int, parts: int) -> range:
    """Units of a part, which counts from 0; all but the last have as many, the last ones may be empty."""
    length = -(-units // parts)
    return range(min(part * length, units), min((part + 1) * length, units))


@dataclass(frozen=True)
class Share:
    """What a job takes of the units that no other part has: the one of ``index``, of so many equal ones."""

    index: int = 0
    of: int = 1
    units: frozenset[Unit] | None = None
    """What a part took that is made again; it takes these."""
    others: frozenset[Unit] = frozenset()
    """Units of parts that are there, or made again."""
    rest: bool = False
    """Whether a part that is made again takes what no other has, too."""

    def taken(self, units: Sequence[Unit], cuts: Collection[int] | None = None) -> list[int]:
        """Numbers of the units it takes, ascending.

        ``cuts`` are numbers of units at which a part may begin; None: at all. It may anywhere after a unit
        of another part.
        """
        own = [] if self.units is None else [n for n, u in enumerate(units) if u in self.units]
        if self.units is not None and not self.rest:
            return own
        claimed = self.others | (self.units or frozenset())
        free = [n for n, unit in enumerate(units) if unit not in claimed]
        if self.units is not None:
            return sorted(own + free)
        blocks: list[list[int]] = []
        for n in free:
            if not blocks or blocks[-1][-1] != n - 1 or cuts is None or n in cuts:
                blocks.append([])
            blocks[-1].append(n)
        mine = part_of(len(blocks), self.index, self.of)
        return [n for block in blocks[mine.start : mine.stop] for n in block]


def runs(numbers: Iterable[int]) -> list[range]:
    """Ascending numbers as ranges of those that follow on each other."""
    found: list[range] = []
    for n in numbers:
        if found and found[-1].stop == n:
            found[-1] = range(found[-1].start, n + 1)
        else:
            found.append(range(n, n + 1))
    return found
