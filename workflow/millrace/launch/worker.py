"""Ranks that `millrace.launch.launcher.run_workers` starts by torchrun, each with the same request."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from millrace.errors import explain, first_line
from millrace.launch.agent import CANCELLED, FAILED
from millrace.systems.registry import load_plugins
from millrace.training.distributed import Ranks, process_group


def work_on(kind: Callable[..., Any], work: Callable[[Any, Ranks, Path], None]) -> int:
    """Call ``work`` with the request of the command line, the ranks and the path of the request.

    ``kind`` is the dataclass of the request, which has ``plugins``. Returns the exit code of the process.
    An error that can be explained is written beside the request; after others all ranks start again.
    """
    parser = argparse.ArgumentParser(description="Work on a request; start it with torchrun.")
    parser.add_argument("request", type=Path, help=f"JSON file of a {kind.__name__}")
    path: Path = parser.parse_args().request
    error_file = path.with_suffix(FAILED)
    if error_file.exists() or path.with_suffix(CANCELLED).exists():
        return 0  # torchrun starts all ranks again when one ends, but that is of no use here
    try:
        request = kind(**json.loads(path.read_text()))
        load_plugins(request.plugins)
        with process_group() as ranks:
            work(request, ranks, path)
    except Exception as error:
        if _is_of_others(error):
            rank = os.environ.get("RANK", "0")
            print(f"rank {rank} has lost the others: {first_line(error)}", file=sys.stderr)
            return 1
        if (explained := explain(error)) is None:
            raise
        # The output of workers is hidden by torchrun's own report: the launcher prints it last.
        with suppress(OSError):
            error_file.write_text(json.dumps(explained))
        print(f"error: {explained[0]}", file=sys.stderr)
        return explained[1]
    return 0


def _is_of_others(error: Exception) -> bool:
    """Whether an error says that another rank is gone; why, that one has said."""
    of_gloo = isinstance(error, RuntimeError) and "gloo" in str(
        error
    )  # which has no class of its own
    return of_gloo or isinstance(error, dist.DistError | ConnectionError)
