"""Ranks that `millrace.launch.launcher.run_workers` starts by torchrun, each with the same request."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from millrace.errors import UserError
from millrace.launch.agent import CANCELLED, FAILED
from millrace.systems.registry import load_plugins
from millrace.training.distributed import Ranks, process_group


def work_on(kind: Callable[..., Any], work: Callable[[Any, Ranks, Path], None]) -> int:
    """Call ``work`` with the request of the command line, the ranks and the path of the request.

    ``kind`` is the dataclass of the request, which has ``plugins``. Returns the exit code of the process; a
    `UserError` is written beside the request.
    """
    parser = argparse.ArgumentParser(description="Work on a request; start it with torchrun.")
    parser.add_argument("request", type=Path, help=f"JSON file of a {kind.__name__}")
    path: Path = parser.parse_args().request
    error_file = path.with_suffix(FAILED)
    if error_file.exists() or path.with_suffix(CANCELLED).exists():
        return 0  # torchrun starts all ranks again when one ends, but that is of no use here
    request = kind(**json.loads(path.read_text()))
    try:
        load_plugins(request.plugins)
        with process_group() as ranks:
            work(request, ranks, path)
    except UserError as error:
        # The output of workers is hidden by torchrun's own report: the launcher prints it last.
        error_file.write_text(json.dumps([str(error), int(error.exit_code)]))
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0
