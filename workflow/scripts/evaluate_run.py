"""Rule evaluate_run: metrics and figures of a trained model."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.processes import importing, keep_freed_memory

    with importing():
        from millrace.evaluation.run import evaluate_run

    keep_freed_memory()
    inputs = dict(snakemake.input.items())
    evaluate_run(
        checkpoint=Path(inputs.pop("checkpoint")),
        receipt=Path(inputs.pop("receipt")),
        files=inputs,
        **{name: Path(path) for name, path in snakemake.output.items()},
        progress=progress("batches"),
    )
