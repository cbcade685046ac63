"""Rules train_segment and train_race: train to the next milestone, on the layout whose job starts first."""

import sys
from functools import partial

from millrace.job_log import job

with job(snakemake):
    from millrace.cluster import cluster_of_job
    from millrace.job_requests import segment_request
    from millrace.launch.first_to_start import race_layouts
    from millrace.launch.launcher import launch, surroundings_of
    from millrace.layout import Layout
    from millrace.sweeps.failure import train_or_fail

    request = segment_request(
        snakemake.config,
        snakemake.wildcards,
        snakemake.params.definition,
        snakemake.input,
        snakemake.output,
    )
    cluster, cpus = cluster_of_job(snakemake.resources), snakemake.threads
    container = snakemake.resources.get("container")
    race = len(Layout.entrants(request.layout)) > 1
    train = (
        partial(race_layouts, request, cluster, cpus, container)
        if race
        else partial(launch, request, cpus, surroundings_of(cluster, container))
    )
    sys.exit(train_or_fail(request, snakemake.config["experiments"], train))
