"""Rule convert_tracks: a public data set of traffic as the CSV files of recorded tracks."""

from pathlib import Path

from millrace.job_log import job
from millrace.systems.traffic.formats import convert

with job(snakemake) as progress:
    source, output = Path(snakemake.input.source), Path(snakemake.output[0])
    convert(snakemake.params.format, source, output, progress("files"))
