"""Cases of the driver: each draws its chances from the seed, its kind and its number alone."""

import random
from collections import Counter
from dataclasses import dataclass

RESTORED, REFUSED = "continued or restored", "refused in a sentence"
SILENT, TRACEBACK, ORPHAN, UNEQUAL = "silent", "tracebacks", "orphans", "unequal weights"
OTHER = "other failures"
FAILURES = (SILENT, TRACEBACK, ORPHAN, UNEQUAL, OTHER)


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    kind: str
    number: int
    what: str
    """What was done."""
    result: str = RESTORED
    """Of this module's results."""
    why: str = ""
    """Of a failure: what was seen."""

    @property
    def failed(self):
        return self.result in FAILURES


class Single:
    """A driver whose cases do not depend on each other: it has ``run(seed, number)``."""

    def chain(self, seed, first, last):
        """Outcomes of the cases from ``first`` to before ``last``."""
        for number in range(first, last):
            yield self.run(seed, number)


def chance(seed, kind, number):
    """The chances of a case."""
    return random.Random(f"{seed}/{kind}/{number}")


def table(outcomes):
    """One row for each kind."""
    columns = ("tried", REFUSED, RESTORED, *FAILURES)
    lines = [f"{'kind':<16}" + "".join(f"{name:>{len(name) + 2}}" for name in columns)]
    for kind in dict.fromkeys(one.kind for one in outcomes):
        counts = Counter(one.result for one in outcomes if one.kind == kind)
        counts["tried"] = counts.total()
        row = "".join(f"{counts[name]:>{len(name) + 2}}" for name in columns)
        lines.append(f"{kind:<16}{row}")
    return "\n".join(lines)
