"""Rule sample_motion: segments for vocabularies, of one of several parts of the files."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.data.division import read_share
    from millrace.systems.traffic.scenarios import TokenConfig, sample_motion

    sample_motion(
        Path(snakemake.input.source),
        Path(snakemake.output.sample),
        TokenConfig.parse(snakemake.params.tokens, "tokens"),
        read_share(*snakemake.params.share),
        progress("files"),
        snakemake.params.format,
    )
