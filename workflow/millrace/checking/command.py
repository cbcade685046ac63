"""Hold the models of a plug-in, and its samples, to what the engine and the workflow rely on.

A small dataset and a small model, the `example` of the system, are tried on this machine's CPU: build,
gradients, save and load, resume, two ranks, precisions, and a short training. The exit code is 1 if a
contract does not hold.
"""

import argparse
import time
from pathlib import Path

from millrace.checking.subjects import find_subjects
from millrace.errors import exits_with_code


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0, 1 if a contract does not hold, or the exit code of a user's error."""
    options = _parser().parse_args(arguments)
    failed, held, started = [], 0, time.monotonic()
    for subject in find_subjects(options.names, options.config, options.only):
        print(subject.name, flush=True)
        if reason := subject.failure(lambda case: None):
            failed.append(f"{subject.name} samples")
            print(f"  FAILED  samples: {reason}", flush=True)
            continue
        for contract in subject.contracts:
            if reason := subject.failure(contract):
                failed.append(f"{subject.name} {contract.__name__}")
                print(f"  FAILED  {contract.__name__}: {contract.__doc__}\n          {reason}")
            else:
                held += 1
                print(f"  ok      {contract.__name__}", flush=True)
    print(f"{held} contracts hold, {len(failed)} do not, {time.monotonic() - started:.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="millrace check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  millrace check my_system.py\n"
        "  millrace check my_system.py --only my_model --only resumes_bitwise\n"
        "  millrace check gino",
    )
    text = "file or module of a plug-in, or a model or system by name"
    parser.add_argument("names", nargs="+", metavar="NAME", help=text)
    text = "one experiment or contract; can be repeated (default: all)"
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=text)
    text = "take the experiments of this configuration, not the examples of the system"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)
    return parser
