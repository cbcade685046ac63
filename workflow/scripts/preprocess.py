"""Rule preprocess: raw CSV files, checked, to one time series."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.data.split import SplitConfig
from millrace.job_log import job
from millrace.systems.groundwater.series import preprocess

with job(snakemake) as progress:
    preprocess(
        Path(snakemake.input.source),
        Path(snakemake.output.series),
        variables=snakemake.params.variables,
        forcings=snakemake.params.forcings,
        split=from_mapping(SplitConfig, snakemake.params.split, "split"),
        clip_negative_concentration=snakemake.params.clip,
        workers=snakemake.threads,
        progress=progress("files"),
    )
