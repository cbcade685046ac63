"""Make output files of what a running ICON streams."""

import argparse
import contextlib
import time
from pathlib import Path

from millrace.command_line import make_parser
from millrace.errors import ExitCode, exits_with_code
from millrace.systems.downscaling.stream.watcher import Watcher


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(arguments)
    with contextlib.suppress(KeyboardInterrupt):
        watcher = Watcher(options.stream, options.grids, options.output)
        while True:
            for path in watcher.poll():
                print(path, flush=True)
            if options.once:
                break
            time.sleep(options.interval)
    return ExitCode.OK


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = make_parser("stream", __doc__, "--stream stream --grids grids --output fields --once")
    add = made.add_argument
    add("--stream", type=Path, required=True, metavar="DIR", help="directory of the plug-in")
    add("--grids", type=Path, required=True, metavar="DIR", help="grid files of the run")
    text = "directory to fill: a source of a dataset"
    add("--output", type=Path, required=True, metavar="DIR", help=text)
    add("--interval", type=float, default=30.0, metavar="S", help="between two looks (default: 30)")
    add("--once", action="store_true", help="look once")
    return made
