"""Rule train_segment: train to the next milestone."""

import sys

from millrace.cluster import cluster_of_job
from millrace.job_log import job
from millrace.launch.launcher import launch, surroundings_of
from millrace.plan import segment_request

with job(snakemake):
    request = segment_request(
        snakemake.config,
        snakemake.wildcards,
        snakemake.params.definition,
        snakemake.input,
        snakemake.output,
    )
    around = surroundings_of(cluster_of_job(snakemake.resources))
    sys.exit(launch(request, snakemake.threads, around))
