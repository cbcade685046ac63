"""Rule evaluate_run: metrics and figures of a trained model."""

from pathlib import Path

from millrace.evaluate import evaluate_run
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    evaluate_run(
        checkpoint=Path(snakemake.input.checkpoint),
        receipt=Path(snakemake.input.receipt),
        files={k: Path(snakemake.input[k]) for k in ("patches", "graph")},
        metrics=Path(snakemake.output.metrics),
        figures=Path(snakemake.output.figures),
        curves=Path(snakemake.output.curves),
        progress=progress("batches"),
    )
