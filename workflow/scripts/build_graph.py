"""Rule build_graph: neighbour tables between patches and their latent grid."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake):
    from millrace.systems.groundwater.graphs import build_graphs

    shape, radius = snakemake.wildcards.geometry.split("_r")
    build_graphs(
        Path(snakemake.input.patches),
        Path(snakemake.output.graph),
        latent_shape=tuple(int(n) for n in shape.split("x")),
        radius=float(radius),
    )
