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
    script:
        "../scripts/evaluate_run.py"
