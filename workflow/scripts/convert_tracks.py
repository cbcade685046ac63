"""Rule convert_tracks: a public data set of traffic as the CSV files of recorded tracks."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.traffic.formats import convert

    source, output = Path(snakemake.input.source), Path(snakemake.output[0])
    convert(snakemake.params.format, source, output, progress("files"))
