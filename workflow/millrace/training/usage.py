"""Where the time of a session goes, and where a run is meant to end: small files in its store.

``sessions.jsonl`` has lines by session, the last of each counts; ``target.json`` has the epochs that
were asked for last. Neither is needed to train or to resume: they are for those who watch.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from millrace.files import write_json

SESSIONS, TARGET = "sessions.jsonl", "target.json"
PHASES = ("starting", "training", "validating", "saving")


class SessionUsage:
    """Stopwatch of a session, from the start of its process.

    Parameters
    ----------
    store : Path or None
        Directory of the run; None: another rank writes.
    session : mapping
        What the run remembers of the session.
    """

    def __init__(self, store: Path | None, session: Mapping[str, Any]) -> None:
        self._path = store and store / SESSIONS
        self._session = session
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._begun = psutil.Process().create_time()
        self._since = time.monotonic() - max(0.0, time.time() - self._begun)
        self.lap("starting")
        self.write(int(session["step"]))

    def lap(self, phase: str) -> None:
        """Count the time since the last lap as that of a phase."""
        now = time.monotonic()
        self._seconds[phase] += now - self._since
        self._since = now

    def write(self, step: int) -> None:
        """Note how the time went until a step."""
        if self._path is None:
            return
        seconds = {phase: round(value, 3) for phase, value in self._seconds.items()}
        keys = ("session", "started", "host", "job", "ranks", "device", "step")
        record = {key: self._session.get(key) for key in keys}
        record |= {"begun": round(self._begun, 3), "end_step": step, "seconds": seconds}
        with contextlib.suppress(OSError), self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def write_target(store: Path, milestone: int, final: int | None) -> None:
    """Note the epoch that is trained to now, and the last one that is configured, if it is known."""
    write_json(store / TARGET, {"milestone": milestone, "final": final})


def read_target(store: Path) -> tuple[int | None, int | None]:
    """Epoch that is, or was last, trained to, and the last one that is configured; None: not known."""
    try:
        record = json.loads((store / TARGET).read_text())
        return record["milestone"], record["final"] or record["milestone"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def read_sessions(store: Path) -> list[dict[str, Any]]:
    """What each session of a run wrote last, in the order of their starts."""
    try:
        lines = (store / SESSIONS).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    # Sessions that were killed before they saved anything share their number with the next one.
    latest = {record["begun"]: record for record in _records(lines)}
    return [latest[begun] for begun in sorted(latest)]


def _records(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):  # a kill cut it short
            record = json.loads(line)
            if isinstance(record, dict) and {"begun", "seconds", "end_step"} <= record.keys():
                yield record
