"""Rule extract_patches: the series cut into patches with ghost nodes."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.groundwater.figures.maps import patch_map
    from millrace.systems.groundwater.patch_file import read_nodes
    from millrace.systems.groundwater.patches import PatchConfig, extract_patches

    config = PatchConfig.parse(snakemake.params.patches, "patches")
    patches = Path(snakemake.output.patches)
    extract_patches(Path(snakemake.input.series), patches, config, progress("time steps"))
    nodes = read_nodes(patches)
    patch_map(nodes.coords_N3, nodes.patch_N, snakemake.output.map, nodes.slice_group_N)
