"""Rule simulate_raw: raw files of a dataset, as a user would bring them."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.data.extraction import simulate
    from millrace.systems.registry import raw_format

    made = raw_format(snakemake.config["datasets"][snakemake.wildcards.dataset])
    simulate(made, snakemake.params.demo, Path(snakemake.output[0]), progress("steps"))
