"""Results of checks, tables of them, and the commands that checks run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from millrace.cluster import Cluster
from millrace.files import write_json
from millrace.schedulers.base import run_command

# A scheduler that cannot read its configuration tries for a minute; a busy one may need even longer.
COMMAND_TIMEOUT_S = 30.0


class Result(Enum):
    """Outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not as desired."""
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
    """The result of one check."""

    name: str
    result: Result
    detail: str
    remedy: str = ""
    """What to do, in one sentence; failures and warnings have one."""

    @classmethod
    def ok(cls, name: str, detail: str) -> "Check":
        """Return a passed check."""
        return cls(name, Result.OK, detail)

    @classmethod
    def warning(cls, name: str, detail: str, remedy: str) -> "Check":
        """Return a check of something that works, but not as desired."""
        return cls(name, Result.WARNING, detail, remedy)

    @classmethod
    def failed(cls, name: str, detail: str, remedy: str) -> "Check":
        """Return a failed check: jobs would fail."""
        return cls(name, Result.FAILED, detail, remedy)

    @classmethod
    def skipped(cls, name: str, reason: str) -> "Check":
        """Return a check that could not be tried."""
        return cls(name, Result.SKIPPED, reason)

    @classmethod
    def not_applicable(cls, name: str, reason: str) -> "Check":
        """Return a check that has no meaning here."""
        return cls(name, Result.NOT_APPLICABLE, reason)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Check":
        """Return the check of a record that `write` wrote."""
        return cls(**{**record, "result": Result(record["result"])})


def attempt(name: str, check: Callable[[], Check]) -> Check:
    """Run a check; an error of the operating system is a failed check."""
    try:
        return check()
    except OSError as error:
        return Check.failed(
            name,
            f"{error.strerror or type(error).__name__} ({error.filename or error})",
            "Ask the cluster's support what this means here; the other checks may tell more.",
        )


def any_failed(checks: Iterable[Check]) -> bool:
    """Whether a check failed."""
    return any(check.result is Result.FAILED for check in checks)


def table(checks: Sequence[Check], title: str) -> Table:
    """Return one row for each check, with the remedy below the detail."""
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
    """Return the number of checks by result, as text."""
    counts = {result: sum(check.result is result for check in checks) for result in Result}
    return ", ".join(f"{count} {result.value}" for result, count in counts.items() if count)


def as_json(sections: Mapping[str, Sequence[Check]]) -> dict[str, Any]:
    """Return checks for JSON: ``ok``, and the checks by section."""
    records = {
        name: [{**asdict(check), "result": check.result.value} for check in checks]
        for name, checks in sections.items()
    }
    ok = not any(any_failed(checks) for checks in sections.values())
    return {"schema": "millrace.doctor/1", "ok": ok, "sections": records}


def write(path: Path, sections: Mapping[str, Sequence[Check]]) -> None:
    """Write checks as JSON; raises `millrace.files.OutputError`."""
    write_json(path, as_json(sections))


def facts_of(cluster: Cluster) -> str:
    """Return the path of the cluster's facts for messages, relative to this directory if possible."""
    file = cluster.file
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


@dataclass(frozen=True)
class Answer:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line of the output, in which commands usually give their reason."""
        lines = [line.strip() for line in f"{self.out}\n{self.err}".splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code} without output"

    @property
    def rows(self) -> list[list[str]]:
        """Fields of the lines of the output, which are separated by ``|``."""
        return [line.split("|") for line in self.out.splitlines() if line.strip()]


def ask(*command: str) -> Answer:
    """Run a command without input, for at most half a minute."""
    done = run_command(*command, timeout_s=COMMAND_TIMEOUT_S)
    return Answer(done.returncode, done.stdout, done.stderr)
