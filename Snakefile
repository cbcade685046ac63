"""Millrace: from raw scientific data to trained, evaluated surrogate models and a report.

    snakemake --profile profiles/local            everything that config/config.yaml asks for
    snakemake --profile profiles/local train      one stage: data, train, evaluate,
                                                  sweep, scaling_report or report
    snakemake -n --profile profiles/local         what would be done
    snakemake --profile profiles/gilbreth         on a cluster
    snakemake --profile profiles/gilbreth preflight   tries each layout there with a short job

Configuration: config/README.md. Rules are cut by stage, in the order of the data flow.
"""

from pathlib import Path

if Path("config/config.yaml").is_file():

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/container.smk"
include: "workflow/rules/cluster.smk"
include: "workflow/rules/preflight.smk"
include: "workflow/rules/samples.smk"
include: "workflow/rules/groundwater.smk"
include: "workflow/rules/traffic.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/trials.smk"
include: "workflow/rules/sweep.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/scaling.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        plan.final_checkpoints(),
        plan.metrics(),
        plan.ensembles(),
        plan.sweep_tables(),
        *of_chosen(plan.ensembles),
        plan.predicted_files(),
        plan.compared_files(),
        plan.report(),


rule preflight:
    input:
        stage("preflight", "preflight_layout", files=plan.preflights()),


rule data:
    input:
        stage(
            "data",
            "extract_samples",
            "extract_part",
            "gather_samples",
            *plan.data.rules_of_data(),
            files=plan.sample_files(),
        ),


rule train:
    input:
        stage("train", "train_segment", "train_race", files=plan.final_checkpoints()),
        *of_chosen(plan.final_checkpoints),


rule evaluate:
    input:
        stage(
            "evaluate",
            "evaluate_run",
            "evaluate_ensemble",
            files=plan.metrics() + plan.ensembles(),
        ),
        *of_chosen(plan.metrics),
        *of_chosen(plan.ensembles),


rule sweep:
    input:
        stage(
            "sweep",
            "ask_trials",
            "prune_trials",
            "choose_trial",
            "summarise_sweep",
            files=plan.sweep_tables(),
        ),


rule scaling_report:
    input:
        stage(
            "scaling_report", "analyse_scaling", files=["results/scaling/report.html"]
        ),


rule report:
    input:
        stage(
            "report",
            "summarise_skill",
            "compare_runs",
            files=plan.report() + plan.compared_files(),
        ),
