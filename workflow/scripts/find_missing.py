"""Rule find_missing: nodes without values in one of several parts of the raw files."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.groundwater.missing_nodes import find_missing
    from millrace.systems.groundwater.settings import MaskedMissing
    from millrace.systems.groundwater.units import UNITS

    find_missing(
        Path(snakemake.input.source),
        Path(snakemake.output.nodes),
        variables=snakemake.params.variables,
        units={**UNITS, **(snakemake.params.units or {})},
        value=MaskedMissing.parse(snakemake.params.missing, "missing").value,
        part=int(snakemake.wildcards.part),
        parts=snakemake.params.parts,
        workers=snakemake.threads,
        progress=progress("files"),
    )
