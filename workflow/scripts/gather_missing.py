"""Rule gather_missing: nodes that have values at all times, of all parts."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.groundwater.missing_nodes import gather_missing

    gather_missing(
        [Path(path) for path in snakemake.input.parts],
        Path(snakemake.output.nodes),
        progress("parts"),
    )
