"""Rules train_segment and train_race: train to the next milestone, on the layout whose job starts first."""

import sys

from millrace.cluster import cluster_of_job
from millrace.job_log import job
from millrace.job_requests import segment_request
from millrace.launch.first_to_start import race_layouts
from millrace.launch.launcher import launch, surroundings_of
from millrace.layout import Layout

with job(snakemake):
    request = segment_request(
        snakemake.config,
        snakemake.wildcards,
        snakemake.params.definition,
        snakemake.input,
        snakemake.output,
    )
    cluster, cpus = cluster_of_job(snakemake.resources), snakemake.threads
    if len(Layout.entrants(request.layout)) > 1:
        sys.exit(race_layouts(request, cluster, cpus))
    sys.exit(launch(request, cpus, surroundings_of(cluster)))
