"""The command ``millrace``; what its sub-commands need is imported when one is called."""

import argparse
import os
import sys
from typing import Any

from millrace.config import nearest
from millrace.errors import ExitCode
from millrace.provenance import code_version
from millrace.systems.base import resolve

COMMANDS = {
    "init": ("millrace.project.init", "write a project folder of your own"),
    "config": ("millrace.config_command", "check, show and explain a configuration"),
    "check": ("millrace.checking.command", "hold models and samples of a plug-in to all contracts"),
    "predict": ("millrace.evaluation.predict", "apply a trained model to new raw files"),
    "export": (
        "millrace.evaluation.export",
        "make a program of a trained model that runs elsewhere",
    ),
    "runs": ("millrace.runs.command", "list, watch, verify, clean and back up runs"),
    "cluster": ("millrace.cluster.command", "show clusters, and what jobs would ask them for"),
    "doctor": (
        "millrace.doctor.command",
        "check a cluster or this machine before work is sent there",
    ),
    "report": ("millrace.project.report", "write the report of all results, one HTML file"),
    "plan": ("millrace.planning.command", "jobs, hours, memory and GPUs of a configuration"),
    "stream": (
        "millrace.systems.downscaling.stream.command",
        "make output files of what a running ICON streams",
    ),
    "weatherbench": (
        "millrace.systems.weather.weatherbench",
        "score a weather model as WeatherBench 2 does, from all starts",
    ),
    "sim-agents": (
        "millrace.systems.traffic.sim_agents",
        "write a submission to the Waymo Open Sim Agents Challenge",
    ),
    "completion": ("millrace.completion", "print what completes these commands in bash or zsh"),
}
"""Modules by command, each with functions ``main(arguments)`` and ``parser()``, and what they do."""

_EXAMPLES = """\
examples:
  millrace init my_project --source /data/site
  millrace config check my_site.yaml
  millrace check my_system.py
  millrace report
  millrace plan --profile gilbreth
  millrace runs watch
  millrace doctor --profile profiles/gilbreth
  millrace completion bash

`millrace COMMAND --help` says more. The workflow itself is run by snakemake.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser(
        usage="millrace [--help] [--version] COMMAND ...",
        description="commands:\n"
        + "".join(f"  {n:<12} {text}\n" for n, (_, text) in COMMANDS.items()),
        epilog=_EXAMPLES
        + "\nexit codes:\n"
        + "".join(f"  {int(code):<4} {code.meaning}\n" for code in ExitCode),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments[:1])  # what follows is for the command
    if options.version:
        print(f"millrace {code_version()}")
        return ExitCode.OK
    if (name := options.command) is None:
        parser.error("expected a command; `millrace --help` lists them")
    if name not in COMMANDS:
        parser.error(f"no command {name!r}; {nearest(name, COMMANDS)}")
    try:
        code = int(resolve(f"{COMMANDS[name][0]}:main")(arguments[1:]))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def full_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands with their options, each imported for it."""
    made = _parser()
    commands = made.add_subparsers(metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        own = [resolve(f"{module}:parser")()]
        commands.add_parser(name, help=text, parents=own, add_help=False)
    return made


def _parser(**options: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="millrace", **options)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
