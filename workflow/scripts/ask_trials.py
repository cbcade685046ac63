"""Rule ask_trials: Optuna names the trials of the next generation."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake):
    from millrace.sweeps.asking import write_trials
    from millrace.sweeps.sweep import read_sweeps

    write_trials(
        read_sweeps(snakemake.config["experiments"])[snakemake.wildcards.experiment],
        snakemake.input.get("receipts", []),
        snakemake.params.last_epoch,
        int(snakemake.wildcards.generation),
        Path(snakemake.output[0]),
    )
