"""Where the time of a session goes, and the epochs that a run was asked for: small files in its store.

``sessions.jsonl`` has several lines for each session, of which the last one counts; ``target.json`` has the
epochs that were requested last. Neither is needed to train or to resume: they are for monitoring.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import psutil

from millrace.errors import DataError
from millrace.sealed import read_lines, read_sealed, sealed, write_sealed

SESSIONS, TARGET = "sessions.jsonl", "target.json"
_LONGEST_LINE = 2**16
PHASES = ("starting", "training", "validating", "saving")


class SessionUsage:
    """Stopwatch of a session, from the start of its process.

    ``store`` is the directory of the run; None: another rank writes. ``session`` is the description of the
    session in the checkpoints.
    """

    def __init__(self, store: Path | None, session: Mapping[str, Any]) -> None:
        self._path = store and store / SESSIONS
        self._session = session
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._begun = _begun()
        self._since = time.monotonic() - max(0.0, time.time() - self._begun)
        self.lap("starting")
        self.write(int(session["step"]))

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = time.monotonic()
        self._seconds[phase] += now - self._since
        self._since = now

    def write(self, step: int) -> None:
        """Write how the time until a step was spent."""
        if self._path is None:
            return
        seconds = {phase: round(value, 3) for phase, value in self._seconds.items()}
        keys = ("session", "started", "host", "job", "ranks", "device", "step")
        record = {key: self._session.get(key) for key in keys}
        record |= {"begun": round(self._begun, 3), "end_step": step, "seconds": seconds}
        with contextlib.suppress(OSError), self._path.open("a+b") as file:
            _drop_unfinished(file)
            file.write(json.dumps(sealed(record)).encode() + b"\n")


def _drop_unfinished(file: IO[bytes]) -> None:
    """Remove a last line that a kill or a full disk has cut short: the next one would be added to it."""
    end = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, end - _LONGEST_LINE))
    finished = start + file.read().rfind(b"\n") + 1
    if finished < end:
        file.truncate(finished)


def _begun() -> float:
    """When this rank was started, seconds since 1970, with the imports of the torchrun that forked it."""
    process = psutil.Process()
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    torchrun = process.parent() if is_first else None
    return float((torchrun or process).create_time())


def write_target(store: Path, milestone: int, final: int | None) -> None:
    """Write the epoch that is trained to now, and the last configured one, if it is known."""
    write_sealed(store / TARGET, {"milestone": milestone, "final": final})


def read_target(store: Path) -> tuple[int | None, int | None]:
    """Read the epoch that is or was last trained to, and the last configured one; None: not known."""
    try:
        record = check_target(store)
    except DataError:
        return None, None
    return record["milestone"], record["final"] or record["milestone"]


def check_target(store: Path) -> dict[str, Any]:
    """Read what `write_target` has written; raises `DataError` if it is missing or damaged."""
    path = store / TARGET
    record = read_sealed(
        path, "the target of a run", "training writes it", "training writes it anew"
    )
    if not {"milestone", "final"} <= record.keys():
        raise DataError(f"{path}: damaged, it names no milestone; training writes it anew")
    return record


def read_sessions(store: Path) -> list[dict[str, Any]]:
    """Read the last line of each session of a run, in the order of their starts."""
    # Sessions that were killed before they saved anything share their number with the next one.
    latest: dict[float, dict[str, Any]] = {}
    for record in read_lines(store / SESSIONS):
        if {"begun", "seconds", "end_step"} <= record.keys():
            latest[record["begun"]] = record
    return [latest[begun] for begun in sorted(latest)]
