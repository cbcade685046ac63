"""What a check says, and tables of checks."""

import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from millrace.cluster import Cluster
from millrace.files import write_json

# A scheduler that cannot read its configuration tries for a minute; one that is busy may need long.
COMMAND_TIMEOUT_S = 30.0


class Result(Enum):
    """Outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    """It works, but something is not as one would want it."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """It could not be tried; the detail says why."""
    NOT_APPLICABLE = "not applicable"


_STYLES = {
    Result.OK: "green",
    Result.WARNING: "yellow",
    Result.FAILED: "bold red",
    Result.SKIPPED: "dim",
    Result.NOT_APPLICABLE: "dim",
}


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    result: Result
    detail: str
    remedy: str = ""
    """What to do, in one sentence; failures and warnings have one."""

    @classmethod
    def ok(cls, name: str, detail: str) -> "Check":
        """All is well."""
        return cls(name, Result.OK, detail)

    @classmethod
    def warning(cls, name: str, detail: str, remedy: str) -> "Check":
        """Not as one would want it."""
        return cls(name, Result.WARNING, detail, remedy)

    @classmethod
    def failed(cls, name: str, detail: str, remedy: str) -> "Check":
        """Work sent there would fail."""
        return cls(name, Result.FAILED, detail, remedy)

    @classmethod
    def skipped(cls, name: str, reason: str) -> "Check":
        """Could not be tried."""
        return cls(name, Result.SKIPPED, reason)

    @classmethod
    def not_applicable(cls, name: str, reason: str) -> "Check":
        """Means nothing here."""
        return cls(name, Result.NOT_APPLICABLE, reason)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Check":
        """Read what `to_json` made."""
        return cls(**{**record, "result": Result(record["result"])})

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return {**asdict(self), "result": self.result.value}


def attempt(name: str, check: Callable[[], Check]) -> Check:
    """Run a check; an error of the operating system is its failure, not that of the doctor."""
    try:
        return check()
    except OSError as error:
        return Check.failed(
            name,
            f"{error.strerror or type(error).__name__} ({error.filename or error})",
            "Ask the cluster's support what this means here; the other checks may tell more.",
        )


def any_failed(checks: Iterable[Check]) -> bool:
    """Whether something has to be mended."""
    return any(check.result is Result.FAILED for check in checks)


def table(checks: Sequence[Check], title: str) -> Table:
    """One row a check, with the remedy below the detail."""
    made = Table(title=title, title_justify="left", title_style="bold", show_lines=False)
    made.add_column("check", no_wrap=True)
    made.add_column("result", no_wrap=True)
    made.add_column("detail", overflow="fold")
    for check in checks:
        text = Text(check.detail)
        if check.remedy:
            text.append(f"\n→ {check.remedy}", style="bold")
        made.add_row(check.name, Text(check.result.value, style=_STYLES[check.result]), text)
    return made


def summary(checks: Sequence[Check]) -> str:
    """How many checks had which result."""
    counts = {result: sum(check.result is result for check in checks) for result in Result}
    return ", ".join(f"{count} {result.value}" for result, count in counts.items() if count)


def write(path: Path, sections: Mapping[str, Sequence[Check]]) -> None:
    """Write checks as JSON, whole or not at all: ``ok``, and the checks by section.

    Raises
    ------
    OutputError
        The file system refuses it.
    """
    listed = {name: [check.to_json() for check in checks] for name, checks in sections.items()}
    ok = not any(any_failed(checks) for checks in sections.values())
    write_json(path, {"schema": "millrace.doctor/1", "ok": ok, "sections": listed})


def facts_of(cluster: Cluster) -> str:
    """Path of the cluster's facts, as short as possible, for messages."""
    file = cluster.file
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last thing it said: commands end with their reason."""
        lines = [line.strip() for line in f"{self.out}\n{self.err}".splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code} without a word"

    @property
    def rows(self) -> list[list[str]]:
        """Fields of the lines that are separated by ``|``."""
        return [line.split("|") for line in self.out.splitlines() if line.strip()]


def ask(*command: str) -> Answer:
    """Run a command without input, for at most half a minute."""
    if shutil.which(command[0]) is None:
        return Answer(127, "", f"{command[0]}: command not found")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Answer(124, "", f"{command[0]}: no answer within {COMMAND_TIMEOUT_S:.0f} s")
    return Answer(done.returncode, done.stdout, done.stderr)
