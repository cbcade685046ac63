"""Rule train_race: train to the next milestone on the layout whose job starts first."""

import sys

from millrace.cluster import cluster_of_job
from millrace.job_log import job
from millrace.launch.first_to_start import race_layouts
from millrace.plan import segment_request

with job(snakemake):
    request = segment_request(
        snakemake.config,
        snakemake.wildcards,
        snakemake.params.definition,
        snakemake.input,
        snakemake.output,
    )
    sys.exit(race_layouts(request, cluster_of_job(snakemake.resources), snakemake.threads))
