"""Rule choose_trial: the trial with the lowest validation loss, as a configuration."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake):
    from millrace.sweeps.choosing import write_chosen
    from millrace.sweeps.sweep import read_sweeps

    write_chosen(
        read_sweeps(snakemake.config["experiments"])[snakemake.wildcards.experiment],
        snakemake.config,
        snakemake.input.receipts,
        Path(snakemake.output[0]),
    )
