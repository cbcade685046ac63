"""A job of a chain: the first segment whose outputs are not there is trained, as a workflow would."""

import json
import sys
from pathlib import Path

from millrace.errors import ExitCode, exits_with_code
from millrace.launch.launcher import launch
from millrace.layout import Layout
from millrace.training.request import Request


@exits_with_code
def train_all(requests):
    """Train segments one after the other; returns the exit code of the first that stops before its end."""
    for request in requests:
        if not (Path(request.checkpoint).is_file() and Path(request.receipt).is_file()):
            code = launch(request, cpus=Layout.parse(request.layout).world_size)
            if code:
                return code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(train_all([Request(**one) for one in json.loads(Path(sys.argv[1]).read_text())]))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
