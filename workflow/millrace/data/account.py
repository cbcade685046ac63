"""What became of everything that was read: nothing is left out without being counted."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from millrace.files import write_json


class Account:
    """Counts what was read, by kind (tracks, scenarios, observations): kept, or left out for a reason."""

    def __init__(self) -> None:
        self._kept: Counter[str] = Counter()
        self._left_out: dict[str, Counter[str]] = defaultdict(Counter)

    def keep(self, what: str, number: int = 1) -> None:
        """Count what is kept."""
        self._kept[what] += number

    def leave_out(self, what: str, reason: str, number: int = 1) -> None:
        """Count what is left out."""
        if number:
            self._left_out[what][reason] += number

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
            print(f"{what}: {counts['read']} read, {counts['kept']} kept{reasons}", flush=True)
        write_json(path, found)
