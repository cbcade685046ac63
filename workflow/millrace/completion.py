"""Print a script that completes the commands of millrace in a shell: options, files and names.

Systems, models and profiles are those that are known now: print it again after you install a plug-in.
"""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

import shtab

from millrace.cli import full_parser
from millrace.cluster.facts import FILE, LAYOUTS, PROFILES
from millrace.command_line import make_parser
from millrace.errors import ExitCode, exits_with_code
from millrace.systems.registry import formats, models, systems

_SHELLS = ("bash", "zsh")
_RUNS = {
    "bash": 'compgen -W "$(cd runs 2>/dev/null && printf \'%s\\n\' */*/seed*)" -- "$1"',
    "zsh": "_files -W $PWD/runs -/",
}


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Print the script; returns the exit code."""
    print(script(parser().parse_args(arguments).shell))
    return ExitCode.OK


def script(shell: str) -> str:
    """Return the script for ``bash`` or ``zsh``."""
    made = full_parser()
    completed = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
    functions = []
    for metavar, words, files in _words():
        name = f"_millrace_{files}_{metavar.lower()}"  # shtab knows by it that bash completes paths
        completed[metavar] = dict.fromkeys(_SHELLS, name)
        functions.append(_function(shell, name, sorted(words), files))
    completed["RUN"] = dict.fromkeys(_SHELLS, "_millrace_run")
    functions.append(f"_millrace_run() {{ {_RUNS[shell]}; }}")
    for action in _actions(made):
        # FILE.json is a file as well.
        metavar = str(action.metavar or "").partition(".")[0]
        if metavar in completed:
            action.complete = completed[metavar]  # type: ignore[attr-defined]
    preamble: Any = {shell: "\n".join(functions)}
    return shtab.complete(made, shell, preamble=preamble).rstrip()


def _words() -> Iterator[tuple[str, Iterable[str], str]]:
    """Names of values in the parsers, words that may stand there, and whether files or directories may."""
    profiles = {path.parent.name for path in PROFILES.glob("*/config.yaml")} - {"default"}
    yield "SYSTEM", systems(), ""
    yield "FORMAT", formats(), ""
    yield "NAME", [*models(), *systems()], "file"
    yield "PROFILE", profiles, "dir"
    yield "CLUSTER", {path.parent.name for path in PROFILES.glob(f"*/{FILE}")}, "dir"
    yield "LAYOUT", LAYOUTS, ""
    yield "PLUGIN", [], "file"


def _function(shell: str, name: str, words: list[str], files: str) -> str:
    """A function of the shell that completes words, and files or directories."""
    listed = " ".join(words)
    if shell == "bash":
        paths = {"file": '; compgen -f -- "$1"', "dir": '; compgen -d -- "$1"'}.get(files, "")
        return f'{name}() {{ compgen -W "{listed}" -- "$1"{paths}; }}'
    paths = {"file": "'files:file:_files'", "dir": "'folders:folder:_files -/'"}.get(files, "")
    return f"{name}() {{ _alternative 'names:name:({listed})' {paths} }}"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All options and values of a parser and its sub-commands."""
    for action in parser._actions:  # argparse has no other way
        yield action
        if isinstance(action.choices, dict):  # the parsers of sub-commands
            for one in action.choices.values():
                yield from _actions(one)


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    # Where each shell looks for it, from its next start on.
    made = make_parser(
        "completion",
        __doc__,
        "bash > ~/.local/share/bash-completion/completions/millrace",
        'zsh > "${fpath[1]}/_millrace"',
    )
    made.add_argument("shell", choices=_SHELLS, help="which shell")
    return made
