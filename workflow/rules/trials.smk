"""Input functions of sweeps: which trials there are, how far each goes, and which one is chosen."""

from millrace.sweeps.choosing import read_chosen
from millrace.sweeps.outcome import ended, read_trials

SWEPT = "|".join(plan.sweeps) or "(?!)"

if workflow.is_main_process:  # not in every job again
    for experiment in plan.swept():
        logger.info(plan.sweeps[experiment].description)


def read(checkpoint, key, **wildcards):
    """What a checkpoint has written; Snakemake puts the question off until then."""
    return from_file(read_trials, checkpoint.get(**wildcards).output[0])[key]


def from_file(read, path):
    """What a function reads from a file that may be damaged."""
    try:
        return read(Path(path))
    except DataError as error:
        raise WorkflowError(str(error)) from None


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
    return from_file(read_chosen, found)


def of_chosen(answer):
    """Input functions, one for each sweep that runs: what the plan answers for its chosen trial."""
    return [
        lambda wildcards, name=name: answer([chosen(name)]) for name in plan.swept()
    ]


def with_chosen(answer):
    """Input function: what the plan answers, and what it answers for the chosen trials."""
    return lambda wildcards: answer() + answer([chosen(one) for one in plan.swept()])
