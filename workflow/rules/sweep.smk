"""Sweeps: trials are asked for, trained as any run, stopped at milestones, ranked; one is chosen.

What is trained after a generation of trials, or beyond a milestone, depends on their losses: these rules are
checkpoints, after which Snakemake plans again. The trials themselves are runs of the other rules.
"""

import json

from millrace.sweeps.choosing import read_chosen
from millrace.sweeps.outcome import ended

SWEPT = "|".join(plan.sweeps) or "(?!)"

if workflow.is_main_process:  # not in every job again
    for experiment in plan.swept():
        logger.info(plan.sweeps[experiment].description)


def read(checkpoint, key, **wildcards):
    """What a checkpoint has written; Snakemake puts the question off until then."""
    return json.loads(Path(checkpoint.get(**wildcards).output[0]).read_text())[key]


def asked(experiment, generation):
    """Trials of a generation."""
    known = plan.sweeps[experiment].trials
    names = {"experiment": experiment, "generation": generation}
    return read(checkpoints.ask_trials, "trials", **names) if known is None else known


def milestones_of(experiment, generation, epoch=None):
    """Trials of a generation, with the milestone at which each ends, or at most at an epoch."""
    names = {"experiment": experiment, "generation": generation}
    return ended(
        asked(experiment, generation),
        [e for e in plan.milestones(experiment) if epoch is None or e <= epoch],
        plan.sweeps[experiment].prunes
        and (lambda e: read(checkpoints.prune_trials, "going_on", epoch=e, **names)),
    )


def receipts(experiment, generations, epoch=None):
    """Receipts of all trials of generations where they end; of the last generation at most at an epoch."""
    found = {}
    for generation in range(generations):
        last = generation == generations - 1
        found |= milestones_of(experiment, generation, epoch if last else None)
    return plan.trial_receipts(experiment, found)


def all_receipts(wildcards):
    sweep = plan.sweeps[wildcards.experiment]
    return receipts(wildcards.experiment, sweep.generations)


def chosen(experiment):
    """The chosen trial of a sweep."""
    found = checkpoints.choose_trial.get(experiment=experiment).output[0]
    return read_chosen(Path(found))


def of_chosen(answer):
    """Input functions, one for each sweep that runs: what the plan answers for its chosen trial."""
    return [
        lambda wildcards, name=name: answer([chosen(name)]) for name in plan.swept()
    ]


def with_chosen(answer):
    """Input function: what the plan answers, and what it answers for the chosen trials."""
    return lambda wildcards: answer() + answer([chosen(one) for one in plan.swept()])


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
