"""Rule build_graph: neighbour tables between patches and their latent grid."""

from pathlib import Path

from millrace.data.graphs import build_graphs
from millrace.jobs import job

with job(snakemake.log[0]):
    shape, radius = snakemake.wildcards.geometry.split("_r")
    build_graphs(
        Path(snakemake.input.patches),
        Path(snakemake.output.graph),
        latent_shape=tuple(int(n) for n in shape.split("x")),
        radius=float(radius),
    )
