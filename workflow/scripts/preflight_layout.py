"""Rule preflight_layout: the ranks of a layout look around, meet, and are judged."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake):
    from millrace.cluster import cluster_of_job
    from millrace.doctor.inside import check_layout
    from millrace.layout import Layout

    check_layout(
        Layout.parse(snakemake.wildcards.layout),
        cluster_of_job(snakemake.resources),
        Path(snakemake.output[0]),
        cpus=snakemake.threads,
        container=snakemake.resources.get("container"),
    )
