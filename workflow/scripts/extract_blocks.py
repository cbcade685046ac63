"""Rule extract_blocks: ICON output in blocks of a coarser grid, with their means."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.data.blocks import BlockConfig, extract_blocks
from millrace.data.series import SplitConfig
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    blocks = {**snakemake.params.blocks, "variables": list(snakemake.params.variables)}
    extract_blocks(
        Path(snakemake.input.source),
        Path(snakemake.output.blocks),
        from_mapping(BlockConfig, blocks, "blocks"),
        from_mapping(SplitConfig, snakemake.params.split, "split"),
        progress("time steps"),
    )
