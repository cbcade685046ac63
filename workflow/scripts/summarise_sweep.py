"""Rule summarise_sweep: all trials in a table and a figure."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake):
    from millrace.sweeps.sweep import read_sweeps
    from millrace.sweeps.table import summarise_sweep

    summarise_sweep(
        read_sweeps(snakemake.config["experiments"])[snakemake.wildcards.experiment],
        snakemake.input.receipts,
        snakemake.input.metrics,
        chosen=Path(snakemake.input.chosen),
        **{name: Path(path) for name, path in snakemake.output.items()},
    )
