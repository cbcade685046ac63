"""Rule analyse_scaling: from the measured runs to the scaling report."""

from pathlib import Path

from millrace.job_log import job

with job(snakemake):
    from millrace.scaling import history
    from millrace.scaling.analysis import analyse
    from millrace.scaling.records import read
    from millrace.scaling.report import write_report
    from millrace.scaling.settings import AnalysisSettings

    outputs = {name: Path(path) for name, path in snakemake.output.items()}
    settings = AnalysisSettings.parse(snakemake.params.settings, "scaling")
    analysis = analyse([read(Path(run)) for run in snakemake.input.runs], settings)
    folder = outputs["html"].parent / "history"
    analysis = history.compare(analysis, folder)
    history.remember(analysis, folder)
    write_report(analysis, **outputs)
