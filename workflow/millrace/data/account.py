"""What became of everything that was read: nothing is left out without being counted."""

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.errors import DataError
from millrace.sealed import read_sealed, write_sealed


class Account:
    """Counts what was read, by kind (tracks, scenarios, observations): kept, or left out for a reason."""

    def __init__(self) -> None:
        self._kept: Counter[str] = Counter()
        self._left_out: dict[str, Counter[str]] = defaultdict(Counter)
        self._notes: dict[str, Mapping[str, Any]] = {}

    def note(self, what: str, values: Mapping[str, Any]) -> None:
        """Add what is no count, such as an error; it stands in the file and the log beside the counts."""
        self._notes[what] = values

    def keep(self, what: str, number: int = 1) -> None:
        """Count what is kept."""
        self._kept[what] += int(number)

    def leave_out(self, what: str, reason: str, number: int = 1) -> None:
        """Count what is left out."""
        if number:
            self._left_out[what][reason] += int(number)

    def add(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Count what another account says, as `to_json` returns it."""
        for what, counts in found.items():
            self.keep(what, counts["kept"])
            for reason, number in counts["left_out"].items():
                self.leave_out(what, reason, number)

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
        for what, values in self._notes.items():
            print(f"{what}: {', '.join(f'{k} {v}' for k, v in values.items())}", file=sys.stderr)
        write_sealed(path, {**found, **self._notes})


def count_steps(account: Account, what: str, ranges: NDArray[np.int64]) -> None:
    """Count steps of training, validation and test, half-open ranges [3, 2], and those between them."""
    used = int((ranges[:, 1] - ranges[:, 0]).sum())
    account.keep(what, used)
    account.leave_out(
        what, "in the gaps between training, validation and test", int(ranges[-1, 1]) - used
    )


def read_accounts(results: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the accounts of extractions and conversions below a folder of results, and what is damaged.

    Each account has ``dataset``, ``what``, ``read``, ``kept`` and ``left_out``. Extractions of earlier
    versions have none. Nothing is computed from them, so that a damaged one is a sentence.
    """
    found, damaged = [], []
    for path in sorted(
        [*results.glob("data/*/*/account.json"), *results.glob("data/*/samples.json")]
    ):
        dataset = path.relative_to(results / "data").parts[0]
        try:
            account = read_sealed(path, "an account of samples", "", "make the samples again")
        except DataError as error:
            damaged.append(str(error))
            continue
        found += [
            {"dataset": dataset, "what": what, **counts}
            for what, counts in account.items()
            if isinstance(counts, dict) and counts.keys() >= {"read", "kept", "left_out"}
        ]
    return found, damaged
