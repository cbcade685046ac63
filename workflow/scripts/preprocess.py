"""Rule preprocess: raw CSV files, checked, to one time series."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake) as progress:
    from millrace.data.split import SplitConfig
    from millrace.processes import keep_freed_memory
    from millrace.systems.groundwater.series import preprocess
    from millrace.systems.groundwater.settings import MaskedMissing

    keep_freed_memory()
    columns = snakemake.params.variables
    clip = snakemake.params.clip
    told = clip if isinstance(clip, dict) else {"clip": clip, "missing": None}
    preprocess(
        Path(snakemake.input.source),
        Path(snakemake.output.series),
        variables=list(columns),
        units={k: v for k, v in columns.items() if v} if isinstance(columns, dict) else None,
        forcings=snakemake.params.forcings,
        split=SplitConfig.parse(snakemake.params.split, "split"),
        clip_negative_concentration=told["clip"],
        missing=told["missing"] and MaskedMissing.parse(told["missing"], "missing"),
        workers=snakemake.threads,
        progress=progress("files"),
    )
