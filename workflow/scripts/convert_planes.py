"""Rule convert_planes: folders of sequences on vertical sections, put together to series again."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.data.plane_folders import convert_plane_folders
from millrace.data.series import SplitConfig
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    split = from_mapping(SplitConfig, snakemake.params.split, "split")
    source, planes = Path(snakemake.input.source), Path(snakemake.output.planes)
    convert_plane_folders(source, planes, split, progress("planes"))
