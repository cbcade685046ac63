"""Checked configuration, wildcard constraints, and the plan's answers as input functions."""

import yaml

from millrace.errors import ConfigError, DataError
from millrace.layout import Layout
from millrace.plan import Plan

try:
    with open(workflow.source_path("../schemas/config.schema.yaml")) as schema:
        plan = Plan(config, yaml.safe_load(schema))
except ConfigError as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process:  # not in every job again
    for note in plan.advice():
        logger.warning(note)


LAYOUT = r"n[1-9]\d*_gpu[1-9]\d*"
RACE = f"{LAYOUT}(-or-{LAYOUT})+"


wildcard_constraints:
    dataset="|".join(plan.datasets),
    prediction="|".join(plan.predictions) or "(?!)",
    experiment="|".join(plan.experiments),
    layout=f"{LAYOUT}(-or-{LAYOUT})*",
    seed=r"\d+",
    mode="strong|weak",
    repeat=r"\d+",
    epoch=r"\d+",
    geometry=r"[\dx]+_r[\d.]+",


def dataset_block(key, default=None):
    """A key of the dataset's block in the configuration."""
    return lambda wildcards: plan.datasets[wildcards.dataset].get(key, default)


def raw_source(wildcards):
    """Directory of the raw files."""
    try:
        return plan.source(wildcards.dataset)
    except DataError as error:
        raise WorkflowError(str(error)) from None


def raw_fingerprint(wildcards):
    """Names and sizes of the raw files."""
    return plan.fingerprint(wildcards.dataset)


def samples(wildcards):
    """Files the experiment's samples are read from, by role."""
    return plan.samples(wildcards.experiment)


def definition(wildcards):
    """What decides the weights."""
    return plan.definition(wildcards.experiment)


def previous_checkpoint(wildcards):
    """The milestone before, which the segment continues."""
    w = wildcards
    return plan.previous_checkpoint(w.experiment, w.layout, w.seed, int(w.epoch))


def initial_checkpoint(wildcards):
    """The checkpoint that the weights come from, if any."""
    return plan.initial_checkpoint(wildcards.experiment, wildcards.seed)


def measured_checkpoint(wildcards):
    """The checkpoint that a measurement starts from, if any."""
    return plan.measured_checkpoint(wildcards.experiment)


def final_checkpoint(wildcards):
    """The run's last checkpoint and its receipt."""
    return plan.final_checkpoint(wildcards.experiment, wildcards.layout, wildcards.seed)


def ensemble_checkpoints(wildcards):
    """Last checkpoints and receipts of all seeds."""
    return plan.ensemble_checkpoints(wildcards.experiment, wildcards.layout)


def predicting_checkpoint(wildcards):
    """The checkpoint that a prediction is made with, and its receipt."""
    block = plan.predictions[wildcards.prediction]
    return plan.final_checkpoint(block["experiment"], block["layout"], block["seed"])


def prediction_source(wildcards):
    """Directory of the raw files that a prediction is made for."""
    try:
        return plan.prediction_source(wildcards.prediction)
    except DataError as error:
        raise WorkflowError(str(error)) from None


def prediction_fingerprint(wildcards):
    """Names and sizes of these files."""
    return plan.prediction_fingerprint(wildcards.prediction)


def ranks(wildcards):
    """Training processes of the layout: its job takes at least as many cores."""
    return max(one.world_size for one in Layout.entrants(wildcards.layout))


def all_cores(wildcards):
    """Threads of a job beside which nothing else may run on this machine."""
    return 1 if workflow.non_local_exec else workflow.cores


def stage(target, *jobs, files):
    """Input of a stage target; forcing the target (`-R train`) forces the jobs behind it."""

    def inputs(wildcards):
        forced = workflow._dag.forcerules
        own, *behind = [getattr(rules, name).rule for name in (target, *jobs)]
        if own in forced:
            forced.update(behind)
        return files

    return inputs
