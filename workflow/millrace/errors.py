"""Errors that a user can cause, and the exit codes of the command-line tools."""

from enum import IntEnum


class UserError(Exception):
    """Something the user can mend; the message is one sentence that says where and how.

    It names the file, line or key, what was expected and what to do. Command-line entry points print
    the message without a traceback and end with ``exit_code``.
    """

    exit_code: int = 2


class ConfigError(UserError):
    """A key of the configuration is unknown, missing or out of range."""


class DataError(UserError):
    """A data file is malformed, incomplete or does not fit the others."""

    exit_code = 65


class ExitCode(IntEnum):
    """Exit codes of all commands and of the processes of a job (names after ``sysexits.h``)."""

    OK = 0
    USER = 2
    DATA = 65
    NO_SPACE = 74
    TRY_AGAIN = 75
    """Stopped in good order before the target epoch was committed: run the same command again."""
    NOT_FINITE = 76
    LOCKED = 77
