"""Rule measure_throughput: time the training step on a layout."""

import sys

from millrace.job_log import job

with job(snakemake):
    from millrace.cluster import cluster_of_job
    from millrace.job_requests import measure_request
    from millrace.launch.launcher import surroundings_of
    from millrace.layout import Layout
    from millrace.scaling.worker import measure_throughput

    request = measure_request(
        snakemake.config,
        snakemake.wildcards,
        snakemake.params,
        snakemake.input,
        snakemake.output.run,
    )
    cluster = cluster_of_job(snakemake.resources)
    # Here a rank is one thread on every layout: it stands in for a device.
    cpus = snakemake.threads if cluster else Layout.parse(request.layout).gpus_per_node
    around = surroundings_of(cluster, snakemake.resources.get("container"))
    sys.exit(measure_throughput(request, cpus, around))
