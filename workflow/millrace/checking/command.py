"""Hold the models of a plug-in, and its samples, to what the engine and the workflow rely on.

A small dataset and a small model, the `example` of the system, are tried on this machine's CPU: build,
gradients, save and load, resume, two ranks, precisions, and a short training. The exit code is 1 if a
contract does not hold.
"""

import argparse
import time
from pathlib import Path

from millrace.command_line import add_json, make_parser, print_json
from millrace.errors import ExitCode, exits_with_code


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0, 1 if a contract does not hold, or the exit code of a user's error."""
    options = parser().parse_args(arguments)
    # Imports PyTorch, which --help can do without.
    from millrace.checking.case import NotTried
    from millrace.checking.subjects import find_subjects

    started = time.monotonic()
    records: list[dict[str, str | bool | None]] = []

    def tell(text: str) -> None:
        if not options.json:
            print(text, flush=True)

    def note(subject: str, contract: str, holds: bool | None, reason: str | None = None) -> None:
        records.append(
            {"experiment": subject, "contract": contract, "holds": holds, "reason": reason}
        )

    for subject in find_subjects(options.names, options.config, options.only):
        tell(subject.name)
        if reason := subject.failure(lambda case: None):
            note(subject.name, "samples", False, reason)
            tell(f"  FAILED  samples: {reason}")
            continue
        for contract in subject.contracts:
            try:
                reason = subject.failure(contract)
            except NotTried as error:
                note(subject.name, contract.__name__, None, str(error))
                tell(f"  skipped {contract.__name__}: {error}")
                continue
            note(subject.name, contract.__name__, not reason, reason)
            if reason:
                tell(f"  FAILED  {contract.__name__}: {contract.__doc__}\n          {reason}")
            else:
                tell(f"  ok      {contract.__name__}")
    failed = [f"{one['experiment']} {one['contract']}" for one in records if one["holds"] is False]
    holding = sum(one["holds"] is True for one in records)
    skipped = len(records) - holding - len(failed)
    tell(
        f"{holding} contracts hold, {len(failed)} do not, "
        + (f"{skipped} {'was' if skipped == 1 else 'were'} not tried, " if skipped else "")
        + f"{time.monotonic() - started:.0f} s"
    )
    if failed:
        tell(f"failed: {', '.join(failed)}")
    if options.json:
        print_json(records)
    return ExitCode.FAILED if failed else ExitCode.OK


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = make_parser(
        "check",
        __doc__,
        "my_system.py",
        "my_system.py --only my_model --only resumes_bitwise",
        "gino --json",
    )
    text = "file or module of a plug-in, or a model or system by name"
    made.add_argument("names", nargs="+", metavar="NAME", help=text)
    text = "one experiment or contract; can be repeated (default: all)"
    made.add_argument("--only", action="append", default=[], metavar="CONTRACT", help=text)
    text = "take the experiments of this configuration, not the examples of the system"
    made.add_argument("--config", type=Path, metavar="FILE", help=text)
    add_json(made)
    return made
