"""Make output files of what a running ICON streams."""

import argparse
import contextlib
import time
from pathlib import Path

from millrace.errors import exits_with_code
from millrace.systems.downscaling.stream.watcher import Watcher


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="millrace stream", description=__doc__)
    add = parser.add_argument
    add("--stream", type=Path, required=True, help="directory of the plug-in")
    add("--grids", type=Path, required=True, help="grid files of the run")
    add("--output", type=Path, required=True, help="directory to fill: a source of a dataset")
    add("--interval", type=float, default=30.0, metavar="S", help="between two looks (default: 30)")
    add("--once", action="store_true", help="look once")
    options = parser.parse_args(arguments)
    with contextlib.suppress(KeyboardInterrupt):
        watcher = Watcher(options.stream, options.grids, options.output)
        while True:
            for path in watcher.poll():
                print(path, flush=True)
            if options.once:
                break
            time.sleep(options.interval)
    return 0
