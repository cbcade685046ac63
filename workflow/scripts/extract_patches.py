"""Rule extract_patches: the series cut into patches with ghost nodes."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.data.patches import PatchConfig, extract_patches
from millrace.jobs import job
from millrace.plots.patches import plot_patches

with job(snakemake.log[0]) as progress:
    config = from_mapping(PatchConfig, snakemake.params.patches, "patches")
    patches = Path(snakemake.output.patches)
    extract_patches(Path(snakemake.input.series), patches, config, progress("time steps"))
    plot_patches(patches, Path(snakemake.output.map))
