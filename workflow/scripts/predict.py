"""Rule predict: forecasts of a trained model for raw files of its own or another mesh."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.base import resolve
    from millrace.systems.registry import kind_of

    config = snakemake.config
    experiment = config["predictions"][snakemake.wildcards.prediction]["experiment"]
    predict = resolve(kind_of(config["experiments"][experiment]["model"]["name"]).prediction)
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
