"""Rule compare_runs: a page that compares two runs."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake):
    from millrace.evaluation.compare import compare_results

    compare_results(
        metrics=[Path(path) for path in snakemake.input.metrics],
        receipts=[Path(path) for path in snakemake.input.receipts],
        page=Path(snakemake.output.page),
        record=Path(snakemake.output.record),
    )
