"""What became of everything that was read: nothing is left out without being counted."""

import json
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.files import write_json


class Account:
    """Counts what was read, by kind (tracks, scenarios, observations): kept, or left out for a reason."""

    def __init__(self) -> None:
        self._kept: Counter[str] = Counter()
        self._left_out: dict[str, Counter[str]] = defaultdict(Counter)

    def keep(self, what: str, number: int = 1) -> None:
        """Count what is kept."""
        self._kept[what] += int(number)

    def leave_out(self, what: str, reason: str, number: int = 1) -> None:
        """Count what is left out."""
        if number:
            self._left_out[what][reason] += int(number)

    def to_json(self) -> dict[str, Any]:
        """Plain values: ``{what: {"read", "kept", "left_out": {reason: number}}}``."""
        found = {}
        for what in sorted(self._kept.keys() | self._left_out.keys()):
            reasons = self._left_out.get(what, Counter())
            read = self._kept[what] + reasons.total()
            left = dict(sorted(reasons.items()))
            found[what] = {"read": read, "kept": self._kept[what], "left_out": left}
        return found

    def write(self, path: Path) -> None:
        """Write the account as JSON, and a line of each kind to the log of the job.

        Raises
        ------
        OutputError
            The file system refuses to take it.
        """
        found = self.to_json()
        for what, counts in found.items():
            reasons = "".join(f"; {number} {why}" for why, number in counts["left_out"].items())
            # Not to the output of a command, which a script may read.
            print(f"{what}: {counts['read']} read, {counts['kept']} kept{reasons}", file=sys.stderr)
        write_json(path, found)


def count_steps(account: Account, what: str, ranges: NDArray[np.int64]) -> None:
    """Count steps of training, validation and test, half-open ranges [3, 2], and those between them."""
    used = int((ranges[:, 1] - ranges[:, 0]).sum())
    account.keep(what, used)
    account.leave_out(
        what, "in the gaps between training, validation and test", int(ranges[-1, 1]) - used
    )


def read_accounts(results: Path) -> list[dict[str, Any]]:
    """Return the accounts of all extractions and conversions below a folder of results.

    Each has ``dataset``, ``what``, ``read``, ``kept`` and ``left_out``. Extractions of earlier versions
    have none, and what cannot be read is left out: accounts are told, nothing is computed from them.
    """
    found = []
    for path in sorted(
        [*results.glob("data/*/*/account.json"), *results.glob("data/*/samples.json")]
    ):
        with suppress(OSError, ValueError, AttributeError):
            dataset = path.relative_to(results / "data").parts[0]
            found += [
                {"dataset": dataset, "what": what, **counts}
                for what, counts in json.loads(path.read_text()).items()
                if counts.keys() >= {"read", "kept", "left_out"}
            ]
    return found
