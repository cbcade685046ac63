"""What the commands of ``millrace`` share: parsers with examples, and JSON for scripts."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any


def make_parser(name: str, description: str | None, *examples: str) -> argparse.ArgumentParser:
    """Return the parser of ``millrace <name>``; each of ``examples`` is what may follow that."""
    return argparse.ArgumentParser(
        prog=f"millrace {name}",
        description=description,
        epilog=_epilog(f"millrace {name}", examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_command(
    commands: Any,
    name: str,
    command: Callable[..., Any],
    text: str,
    *examples: str,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> argparse.ArgumentParser:
    """Add a sub-command, which leaves ``command`` in the options that it parses.

    ``commands`` is what ``add_subparsers`` of a parser returned.
    """
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        parents=parents,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.epilog = _epilog(made.prog, examples)
    made.set_defaults(command=command)
    return made


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--json``, with which a command prints JSON in place of tables."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinity, which JSON does not have, raise ValueError."""
    print(json.dumps(value, indent=1, allow_nan=False))


def _epilog(prog: str, examples: Sequence[str]) -> str:
    lines = (f"  {prog} {one}".rstrip() for one in examples)
    return "\n".join(["examples:", *lines])
