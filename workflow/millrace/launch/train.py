"""Worker of a training segment, started by torchrun: ``torchrun -m millrace.launch.train request.json``."""

import argparse
import json
import sys
from pathlib import Path

from millrace.errors import UserError
from millrace.launch.agent import CANCELLED
from millrace.systems.registry import load_plugins
from millrace.training.distributed import process_group
from millrace.training.request import Request
from millrace.training.segment import run_segment


def main() -> int:
    """Run the segment of a request file; a `UserError` is written to ``<request>.error``."""
    parser = argparse.ArgumentParser(description="Train one segment; start it with torchrun.")
    text = "JSON file, see millrace.training.request.Request"
    parser.add_argument("request", type=Path, help=text)
    path: Path = parser.parse_args().request
    error_file = path.with_suffix(".error")
    if error_file.exists() or path.with_suffix(CANCELLED).exists():
        return 0  # torchrun starts all ranks again when one ends, but that is of no use here
    request = Request(**json.loads(path.read_text()))
    try:
        load_plugins(request.plugins)
        with process_group() as ranks:
            stopped = run_segment(request, ranks)
            if stopped and ranks.is_first:
                path.with_suffix(".stopped").write_text(str(int(stopped)))
    except UserError as error:
        # The output of workers is hidden by torchrun's own report: the launcher prints it last.
        error_file.write_text(json.dumps([str(error), int(error.exit_code)]))
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
