"""Rule prune_trials: which trials are trained beyond a milestone."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake):
    from millrace.sweeps.outcome import write_decision

    write_decision(
        snakemake.input.receipts,
        snakemake.params.trials,
        int(snakemake.wildcards.epoch),
        Path(snakemake.output[0]),
    )
