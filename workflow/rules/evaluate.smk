"""Evaluation of final checkpoints on periods that training has not seen."""


rule evaluate_run:
    input:
        unpack(samples),
        unpack(final_checkpoint),
    output:
        metrics=ensure(
            "results/evaluate/{experiment}/{layout}/seed{seed}/metrics.json",
            non_empty=True,
        ),
        figures=report(
            directory("results/evaluate/{experiment}/{layout}/seed{seed}/figures"),
            patterns=["{variable}/{figure}.png", "{variable}/{figure}.gif"],
            caption="../report/evaluation.rst",
            category="Evaluation",
            subcategory="{experiment}",
            labels={
                "layout": "{layout}",
                "seed": "{seed}",
                "variable": "{variable}",
                "figure": "{figure}",
            },
        ),
        curves=report(
            "results/evaluate/{experiment}/{layout}/seed{seed}/training.png",
            caption="../report/training.rst",
            category="Training",
            subcategory="{experiment}",
            labels={
                "layout": "{layout}",
                "seed": "{seed}",
                "figure": "training curves",
            },
        ),
    log:
        "logs/evaluate_run/{experiment}/{layout}/seed{seed}.log",
    benchmark:
        "benchmarks/evaluate_run/{experiment}/{layout}/seed{seed}.tsv"
    conda:
        "../../envs/evaluate.yaml"
    threads: cores("evaluate_run")
    resources:
        **placed("evaluate_run"),
    params:
        # For the report alone: with `output` as argument a change of it runs nothing again.
        caption=lambda wildcards, output: plan.kind(wildcards.experiment).caption,
    script:
        "../scripts/evaluate_run.py"


rule evaluate_ensemble:
    input:
        unpack(samples),
        unpack(ensemble_checkpoints),
    output:
        metrics=ensure(
            "results/evaluate/{experiment}/{layout}/ensemble/metrics.json",
            non_empty=True,
        ),
        figure=report(
            "results/evaluate/{experiment}/{layout}/ensemble/spread_by_lead.png",
            caption="../report/ensemble.rst",
            category="Ensembles",
            labels={
                "experiment": "{experiment}",
                "layout": "{layout}",
                "figure": "error and spread",
            },
        ),
    log:
        "logs/evaluate_ensemble/{experiment}/{layout}.log",
    benchmark:
        "benchmarks/evaluate_ensemble/{experiment}/{layout}.tsv"
    conda:
        "../../envs/evaluate.yaml"
    threads: cores("evaluate_ensemble")
    resources:
        **placed("evaluate_ensemble"),
    script:
        "../scripts/evaluate_ensemble.py"
