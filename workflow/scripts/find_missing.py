"""Rule find_missing: nodes without values in one of several parts of the raw files."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.data.division import read_share
    from millrace.processes import keep_freed_memory
    from millrace.systems.groundwater.missing_nodes import find_missing
    from millrace.systems.groundwater.settings import MaskedMissing
    from millrace.systems.groundwater.units import UNITS

    keep_freed_memory()
    find_missing(
        Path(snakemake.input.source),
        Path(snakemake.output.nodes),
        variables=snakemake.params.variables,
        units={**UNITS, **(snakemake.params.units or {})},
        value=MaskedMissing.parse(snakemake.params.missing, "missing").value,
        share=read_share(*snakemake.params.share),
        workers=snakemake.threads,
        progress=progress("files"),
    )
