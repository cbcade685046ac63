"""Rule preprocess: raw CSV files, checked, to one time series."""

from pathlib import Path

from millrace.config import from_mapping
from millrace.data.series import SplitConfig, preprocess
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
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
