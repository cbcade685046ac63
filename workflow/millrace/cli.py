"""The command ``millrace``; what its sub-commands need is imported when one is called."""

import argparse
import sys

from millrace.config import nearest
from millrace.provenance import code_version
from millrace.systems.base import resolve

COMMANDS = {
    "check": ("millrace.checking.command", "hold models and samples of a plug-in to all contracts"),
    "predict": ("millrace.evaluation.predict", "apply a trained model to new raw files"),
    "runs": ("millrace.runs.command", "list, watch, verify, clean and back up runs"),
    "cluster": ("millrace.cluster.command", "show clusters, and what jobs would ask them for"),
    "doctor": (
        "millrace.doctor.command",
        "check a cluster or this machine before work is sent there",
    ),
    "plan": ("millrace.planning.command", "jobs, hours, memory and GPUs of a configuration"),
    "stream": (
        "millrace.systems.downscaling.stream.command",
        "make output files of what a running ICON streams",
    ),
}
"""Modules by command, each with a function ``main(arguments)``, and what they do."""

_EXAMPLES = """\
examples:
  millrace check my_system.py
  millrace predict --checkpoint epoch_12.ckpt --source new_data --output forecasts.h5
  millrace plan --profile gilbreth
  millrace runs watch
  millrace cluster show
  millrace doctor --profile profiles/gilbreth

`millrace COMMAND --help` says more. The workflow itself is run by snakemake.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="millrace",
        usage="millrace [--help] [--version] COMMAND ...",
        description="commands:\n"
        + "".join(f"  {n:<9} {text}\n" for n, (_, text) in COMMANDS.items()),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("command", metavar="COMMAND", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments[:1])  # what follows is for the command
    if options.version:
        print(f"millrace {code_version()}")
        return 0
    if (name := options.command) is None:
        parser.error("expected a command; `millrace --help` lists them")
    if name not in COMMANDS:
        parser.error(f"no command {name!r}; {nearest(name, COMMANDS)}")
    return int(resolve(f"{COMMANDS[name][0]}:main")(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
