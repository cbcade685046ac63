"""Rule convert_tracks: a public data set of traffic as the CSV files of recorded tracks."""

from pathlib import Path

from millrace.data.adapters import convert
from millrace.jobs import job

with job(snakemake.log[0]) as progress:
    source, output = Path(snakemake.input.source), Path(snakemake.output[0])
    convert(snakemake.params.format, source, output, progress("files"))
