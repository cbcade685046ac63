"""Rule gather_missing: nodes that have values at all times, of all parts."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.systems.groundwater.missing_nodes import gather_missing
    from millrace.systems.groundwater.settings import MaskedMissing
    from millrace.systems.groundwater.units import UNITS

    gather_missing(
        [Path(path) for path in snakemake.input.parts],
        Path(snakemake.input.source),
        Path(snakemake.output.nodes),
        variables=snakemake.params.variables,
        units={**UNITS, **(snakemake.params.units or {})},
        value=MaskedMissing.parse(snakemake.params.missing, "missing").value,
        progress=progress("parts"),
    )
