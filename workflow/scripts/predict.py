"""Rule predict: forecasts of a trained model for raw files of its own or another mesh."""

from pathlib import Path

from millrace.jobs import job
from millrace.predict import predict

with job(snakemake.log[0]) as progress:
    predict(
        checkpoint=Path(snakemake.input.checkpoint),
        receipt=Path(snakemake.input.receipt),
        source=Path(snakemake.input.source),
        output=Path(snakemake.output.predictions),
        metrics=Path(snakemake.output.metrics),
        figure=Path(snakemake.output.figure),
        workers=snakemake.threads,
        progress=progress("forecasts"),
    )
