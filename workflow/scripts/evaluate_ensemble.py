"""Rule evaluate_ensemble: the runs of all seeds together."""

from pathlib import Path

from millrace.evaluate import evaluate_ensemble
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    inputs = dict(snakemake.input.items())
    evaluate_ensemble(
        checkpoints=[Path(path) for path in inputs.pop("checkpoints")],
        receipts=[Path(path) for path in inputs.pop("receipts")],
        files=inputs,
        metrics=Path(snakemake.output.metrics),
        figure=Path(snakemake.output.figure),
        progress=progress("batches"),
    )
