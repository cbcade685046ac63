"""A rank of a training segment, see `millrace.launch.rank`."""

import sys
from pathlib import Path

from millrace.launch.worker import work_on
from millrace.training.distributed import Ranks
from millrace.training.request import Request
from millrace.training.segment import run_segment


def train(request: Request, ranks: Ranks, path: Path) -> None:
    """Run the segment of a request; why it stopped early, if it did, is written beside the request."""
    stopped = run_segment(request, ranks)
    if stopped and ranks.is_first:
        path.with_suffix(".stopped").write_text(str(int(stopped)))


if __name__ == "__main__":
    sys.exit(work_on(Request, train))
