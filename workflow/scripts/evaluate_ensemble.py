"""Rule evaluate_ensemble: the runs of all seeds together."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.processes import importing, keep_freed_memory

    with importing():
        from millrace.evaluation.run import evaluate_ensemble

    keep_freed_memory()
    inputs = dict(snakemake.input.items())
    evaluate_ensemble(
        checkpoints=[Path(path) for path in inputs.pop("checkpoints")],
        receipts=[Path(path) for path in inputs.pop("receipts")],
        files=inputs,
        **{name: Path(path) for name, path in snakemake.output.items()},
        progress=progress("batches"),
    )
