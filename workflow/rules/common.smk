"""Checked configuration, wildcard constraints, and the plan's answers as input functions."""

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from millrace.errors import ConfigError, DataError
from millrace.files import atomic_write
from millrace.input_files import ADDRESS_SUFFIX, is_address
from millrace.layout import Layout
from millrace.plan import Plan
from millrace.processes import lead_jobs
from millrace.yaml_files import check_yaml

if not workflow.subprocess_exec:  # which is part of another one
    lead_jobs()

if not config:
    raise WorkflowError(
        f"no configuration: write {Path('config/config.yaml').absolute()}, or name a file with "
        "--configfile; in a module, give it one with `config:`"
    )


def is_run():
    """Whether jobs are about to start, which read what is planned now; those of another run go on."""
    dry = getattr(workflow.output_settings, "dryrun", False)
    locks = Path(".snakemake/locks")
    locked = locks.is_dir() and any(locks.iterdir())
    return workflow.is_main_process and not dry and not locked


try:
    if workflow.is_main_process:  # not in every job again
        for path in map(Path, workflow.configfiles):
            # A pipe was read already, and a template of YTE is not what it stands for.
            if path.is_file() and "__use_yte__" not in path.read_text():
                check_yaml(path)
    plan = Plan(
        config,
        # Where a module's `prefix` puts results/.
        root=Path(workflow.modifier.modify_path("results/data")).parents[1],
        folders=[
            Path(p).parent for p in (workflow.main_snakefile, *workflow.configfiles)
        ],
        jobs=not workflow.is_main_process,
    )
    plan.data.count_parts(record=is_run())
except (ConfigError, DataError) as error:
    raise WorkflowError(str(error)) from None

config.update(plan.config)  # as the plan reads it, for the jobs as well

if workflow.is_main_process:  # not in every job again
    for note in plan.advice():
        logger.warning(note)


LAYOUT = r"n[1-9]\d*_gpu[1-9]\d*"
RACE = f"{LAYOUT}(-or-{LAYOUT})+"


wildcard_constraints:
    dataset="|".join(plan.datasets),
    prediction="|".join(plan.predictions) or "(?!)",
    comparison="|".join(plan.comparisons) or "(?!)",
    experiment="|".join(
        [*plan.experiments, *(sweep.pattern for sweep in plan.sweeps.values())]
    ),
    layout=f"{LAYOUT}(-or-{LAYOUT})*",
    seed=r"\d+",
    mode="strong|weak",
    repeat=r"\d+",
    part=r"\d+",
    epoch=r"\d+",
    geometry=r"[\dx]+_r[\d.]+",


def dataset_block(key, default=None):
    """A key of the dataset's block in the configuration."""
    return lambda wildcards: plan.datasets[wildcards.dataset].get(key, default)


def by(answer, *names):
    """Input function: what the plan answers for these wildcards."""

    def ask(wildcards):
        try:
            return answer(*(getattr(wildcards, name) for name in names))
        except DataError as error:
            raise WorkflowError(str(error)) from None

    return ask


def configured(answer, *names):
    """The same for a path of the configuration, which starts where the user stands.

    Only what the workflow itself makes lies below the prefix of a module.
    """
    ask = by(answer, *names)

    def path(wildcards):
        found = ask(wildcards)
        if "".join(found).startswith(("results/data/", "results/train/")):
            return found
        given = [found] if isinstance(found, str) else found
        plain = [as_file(path) for path in given]
        return local(plain[0] if isinstance(found, str) else plain)

    return path


def as_file(path):
    """A path that Snakemake takes as it is: a link, if it would see wildcards in the user's.

    What is elsewhere stands as its address in a file. Both are made where the workflow is planned, and are
    the same in every job.
    """
    elsewhere = is_address(path)
    if not elsewhere and not re.search(r"\{\s*\w+\s*(,[^{}]*)?\}", path):
        return path
    safe = re.sub(r"[^\w.-]", "_", Path(path).name)
    digest = hashlib.sha256(str(Path(path).absolute()).encode()).hexdigest()[:12]
    link = Path(".snakemake/millrace/paths", digest, safe)
    if elsewhere:
        file = link.with_name(f"{safe}{ADDRESS_SUFFIX}")
        if not file.exists():
            with atomic_write(file) as partial:
                partial.write_text(f"{path}\n")
        return str(file)
    link.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(Path(path).absolute())
    return str(link)


raw_source = configured(plan.data.source, "dataset")
raw_fingerprint = by(plan.data.fingerprint, "dataset")


def of_part(answer, kind=None):
    """Input function: what the plan answers for a part of samples, or of what they are made of."""
    return lambda wildcards: answer(
        wildcards.dataset, kind or wildcards.kind, wildcards.part
    )


def not_compared(ask):
    """The same as a parameter that is not compared with the last run: it has `output` as argument."""
    return lambda wildcards, output: ask(wildcards)


samples = by(plan.samples, "experiment")
definition = by(plan.definition, "experiment")
previous_checkpoint = by(
    plan.previous_checkpoint, "experiment", "layout", "seed", "epoch"
)
initial_checkpoint = configured(plan.initial_checkpoint, "experiment", "seed")
measured_checkpoint = configured(plan.measured_checkpoint, "experiment")
final_checkpoint = by(plan.final_checkpoint, "experiment", "layout", "seed")
ensemble_checkpoints = by(plan.ensemble_checkpoints, "experiment", "layout")
compared_runs = by(plan.compared_runs, "comparison")
predicting_checkpoint = by(plan.predicting_checkpoint, "prediction")
prediction_source = configured(plan.prediction_source, "prediction")
prediction_fingerprint = by(plan.prediction_fingerprint, "prediction")


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
