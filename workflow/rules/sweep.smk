"""Sweeps: trials are asked for, trained as any run, stopped at milestones, ranked; one is chosen.

What is trained after a generation of trials, or beyond a milestone, depends on their losses: these rules are
checkpoints, after which Snakemake plans again. The trials themselves are runs of the other rules.
"""


checkpoint ask_trials:
    input:
        receipts=lambda w: receipts(w.experiment, int(w.generation)),
    output:
        "results/sweeps/{experiment}/trials_{generation}.json",
    log:
        "logs/ask_trials/{experiment}/{generation}.log",
    wildcard_constraints:
        experiment=SWEPT,
        generation=r"\d+",
    localrule: True  # it takes seconds
    conda:
        "../../envs/report.yaml"
    params:
        last_epoch=lambda w: plan.milestones(w.experiment)[-1],
        # The number of all trials is not among them: asking for more keeps those of before.
        sweep=lambda w: plan.sweeps[w.experiment].question,
        number=lambda w: plan.sweeps[w.experiment].number(int(w.generation)),
    script:
        "../scripts/ask_trials.py"


checkpoint prune_trials:
    input:
        receipts=lambda w: receipts(w.experiment, int(w.generation) + 1, int(w.epoch)),
    output:
        "results/sweeps/{experiment}/trials_{generation}_epoch_{epoch}.json",
    log:
        "logs/prune_trials/{experiment}/{generation}_epoch_{epoch}.log",
    wildcard_constraints:
        experiment=SWEPT,
        generation=r"\d+",
    localrule: True  # it takes seconds
    conda:
        "../../envs/report.yaml"
    params:
        trials=lambda w: [
            trial
            for trial, epoch in milestones_of(
                w.experiment, int(w.generation), int(w.epoch)
            ).items()
            if epoch == int(w.epoch)
        ],
    script:
        "../scripts/prune_trials.py"


checkpoint choose_trial:
    input:
        receipts=all_receipts,
    output:
        "results/sweeps/{experiment}/chosen.yaml",
    log:
        "logs/choose_trial/{experiment}.log",
    wildcard_constraints:
        experiment=SWEPT,
    localrule: True  # it takes seconds
    conda:
        "../../envs/report.yaml"
    script:
        "../scripts/choose_trial.py"


rule summarise_sweep:
    input:
        receipts=all_receipts,
        chosen="results/sweeps/{experiment}/chosen.yaml",
        metrics=lambda w: plan.metrics([chosen(w.experiment)]),
    output:
        table=report(
            "results/sweeps/{experiment}/table.html",
            caption="../report/sweep.rst",
            category="Sweeps",
            labels={"experiment": "{experiment}", "figure": "table of trials"},
        ),
        csv="results/sweeps/{experiment}/table.csv",
        figure=report(
            "results/sweeps/{experiment}/trials.png",
            caption="../report/sweep.rst",
            category="Sweeps",
            labels={"experiment": "{experiment}", "figure": "validation loss"},
        ),
    log:
        "logs/summarise_sweep/{experiment}.log",
    benchmark:
        "benchmarks/summarise_sweep/{experiment}.tsv"
    wildcard_constraints:
        experiment=SWEPT,
    localrule: True  # it takes seconds
    conda:
        "../../envs/report.yaml"
    script:
        "../scripts/summarise_sweep.py"
