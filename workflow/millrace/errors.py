"""Errors that a user can cause, and the exit codes of all commands."""

import errno
import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Self

REFUSED = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG,
}  # fmt: skip
"""Errors of a system that refuses to store something."""


class UserError(Exception):
    """An error that the user can correct.

    Its message is one sentence that names the file, line or key, what was expected and what to do.
    Command-line entry points print the message without a traceback and end with ``exit_code``.
    """

    exit_code: int = 2


class ConfigError(UserError):
    """A key of the configuration is unknown, missing or out of range."""


class DataError(UserError):
    """A data file is malformed, incomplete or does not fit the others."""

    exit_code = 65


class NotFiniteError(UserError):
    """A number that training, scoring or forecasting made is infinite or NaN."""

    exit_code = 76  # ExitCode.NOT_FINITE


def first_line(error: BaseException) -> str:
    """First line of the message of an error, or the name of its type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def listed(things: Sequence[object], shown: int = 3) -> str:
    """First ones of a list for a message, and how many more there are."""
    more = f" and {len(things) - shown} more" if len(things) > shown else ""
    return ", ".join(map(str, things[:shown])) + more


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return sentence and exit code of what a user, data or the system can cause; None: a fault of ours."""
    if isinstance(error, UserError):
        return str(error), int(error.exit_code)
    if isinstance(error, MemoryError):
        said = "out of memory: ask for more (mem_mb of the rule), or for smaller batches"
        return said, int(ExitCode.FAILED)
    if isinstance(error, OSError) and error.strerror:
        said = (
            f"{error.filename or 'a file'}: the system refuses it ({error.strerror}); mend that, and run "
            "the same command again"
        )
        return said, int(ExitCode.NO_SPACE if error.errno in REFUSED else ExitCode.DATA)
    return None


def tell(error: Exception) -> int:
    """Print an error that ends a command or a job, as the last line; returns the exit code.

    Of what `explain` explains it is one sentence. Anything else is a fault of ours, and comes after its
    traceback.
    """
    explained = explain(error)
    if explained is None:
        traceback.print_exception(error)
        said = (
            f"{type(error).__name__}: {first_line(error)}. This is a mistake in Millrace or in a plug-in, "
            "not yours: please report it with the lines above"
        )
        explained = said, int(ExitCode.FAILED)
    print(f"error: {explained[0]}", file=sys.stderr)
    return explained[1]


def exits_with_code(main: Callable[..., int]) -> Callable[..., int]:
    """Have a command print the error that ends it, see `tell`, and return its exit code."""

    @functools.wraps(main)
    def command(*arguments: object) -> int:
        try:
            return int(main(*arguments))
        except BrokenPipeError:
            raise  # who reads the output has seen enough: `millrace.cli` ends quietly
        except Exception as error:
            return tell(error)

    return command


class ExitCode(IntEnum):
    """Exit codes of all commands and of the processes of a job (names after ``sysexits.h``)."""

    meaning: str
    """For ``millrace --help`` and the site."""

    def __new__(cls, value: int, meaning: str) -> Self:
        """Make a member with what it means."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "all went well"
    FAILED = (
        1,
        "something that was looked at is wrong: a check of the doctor, a contract of a model",
    )
    USER = 2, "a mistake in the command or in the configuration; the message says which"
    DATA = 65, "data are missing, malformed or damaged"
    NO_SPACE = 74, "a file cannot be written: no space, quota or permission"
    TRY_AGAIN = (
        75,
        "training stopped in an orderly way before its last epoch: run the same command again",
    )
    NOT_FINITE = 76, "training or a forecast became infinite or NaN"
    LOCKED = 77, "another process writes to the same run"
    INTERRUPTED = 130, "Ctrl-C"
