"""Rule predict: forecasts of a trained model for raw files that no training has seen."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.evaluation.predict import predict_files
    from millrace.systems.registry import raw_format

    config = snakemake.config
    block = config["predictions"][snakemake.wildcards.prediction]
    dataset = config["datasets"].get(block["source"])
    predict_files(
        checkpoint=Path(snakemake.input.checkpoint),
        source=Path(snakemake.input.source),
        output=Path(snakemake.output.predictions),
        raw=raw_format(dataset).name if dataset else None,
        options=block.get("options"),
        metrics=Path(snakemake.output.metrics),
        figure=Path(snakemake.output.figure),
        workers=snakemake.threads,
        progress=progress("forecasts"),
        command=f"rule predict of {snakemake.wildcards.prediction}",
    )
