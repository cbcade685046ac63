"""Rule summarise_skill: scores of all runs in one table and one figure."""

from pathlib import Path

from millrace.jobs import job
from millrace.summary import summarise

with job(snakemake.log[0]):
    summarise(
        [Path(path) for path in snakemake.input.metrics],
        [Path(path) for path in snakemake.input.ensembles],
        table=Path(snakemake.output.table),
        csv=Path(snakemake.output.csv),
        figure=Path(snakemake.output.figure),
    )
