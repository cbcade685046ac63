"""A trial that diverges counts as failed, and does not stop the sweep."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from millrace.errors import ExitCode
from millrace.files import atomic_write
from millrace.provenance import provenance
from millrace.sealed import write_sealed
from millrace.sweeps.sweep import read_sweeps
from millrace.training.receipt import read_receipt
from millrace.training.request import Request

DIVERGED = "the loss or a gradient became infinite or NaN"


def train_or_fail(
    request: Request, experiments: Mapping[str, Any], train: Callable[[], int]
) -> int:
    """Train a segment by ``train``, which returns an exit code; returns that of the job.

    If the run belongs to a trial of one of the ``experiments``, and its loss or gradients became infinite
    or NaN, the outputs say so, and the job succeeds: what fails again in every repetition would otherwise
    end the sweep. A segment after a failed one is not tried.
    """
    if not any(sweep.values(request.experiment) for sweep in read_sweeps(experiments).values()):
        return train()
    code = int(ExitCode.NOT_FINITE) if _has_failed(request.previous) else train()
    if code != ExitCode.NOT_FINITE:
        return code
    print(f"{request.name}: {DIVERGED}: the trial counts as failed")
    output = Path(request.checkpoint)
    with atomic_write(output) as partial:
        partial.write_text(f"{DIVERGED}: there are no weights\n")
    write_sealed(
        Path(request.receipt),
        {
            "schema": "millrace.receipt/1",
            "experiment": request.experiment,
            "layout": request.layout,
            "seed": request.seed,
            "epoch": request.target_epoch,
            "failure": DIVERGED,
            "identity": _newest_store(request),
            "checkpoint": {
                "file": output.name,
                "size": output.stat().st_size,
                "crc32": zlib.crc32(output.read_bytes()),
            },
            "definition": request.definition,
            "history": [],
            "sessions": [],
            "provenance": provenance(),
        },
    )
    return int(ExitCode.OK)


def _has_failed(checkpoint: str | None) -> bool:
    receipt = Path(checkpoint or "").with_suffix(".json") if checkpoint else None
    return bool(receipt and receipt.is_file() and "failure" in read_receipt(receipt))


def _newest_store(request: Request) -> str:
    """Run hash of the store that the training wrote to, under which its last checkpoint is kept."""
    stores = [*Path(request.runs).glob("*/identity.json")]
    newest = max(stores, key=lambda path: path.stat().st_mtime, default=None)
    return newest.parent.name if newest else "none"
