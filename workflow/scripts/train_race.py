"""Rule train_race: train to the next milestone on the layout whose job starts first."""

import sys

from millrace.cluster import cluster_of_job
from millrace.jobs import job
from millrace.plan import segment_request
from millrace.race import race_layouts

with job(snakemake.log[0]):
    request = segment_request(
        snakemake.config,
        snakemake.wildcards,
        snakemake.params.definition,
        snakemake.input,
        snakemake.output,
    )
    sys.exit(race_layouts(request, cluster_of_job(snakemake.resources), snakemake.threads))
