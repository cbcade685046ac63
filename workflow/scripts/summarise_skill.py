"""Rule summarise_skill: scores of all runs in one table and one figure."""

from pathlib import Path

from millrace.job_log import job

others = snakemake.params.others

with job(snakemake):
    from millrace.evaluation.summary import summarise
    from millrace.planning.taken import taken

    sources = {
        name: (Path(folder), parts) for name, (folder, parts) in snakemake.params.datasets.items()
    }
    summarise(
        [Path(path) for path in snakemake.input.metrics],
        [Path(path) for path in snakemake.input.ensembles],
        taken=taken(
            sources, Path(snakemake.params.benchmarks), snakemake.config.get("datasets", {})
        ),
        others=[] if others is ... else [Path(path) for path in others],
        **{name: Path(path) for name, path in snakemake.output.items()},
    )
