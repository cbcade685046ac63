"""What jobs ask for on the cluster of the profile, by profiles/<name>/cluster.yaml."""

import time
from functools import cache
from pathlib import Path

from millrace.cluster import RESOURCES, Cluster
from millrace.planning.gpu_memory import check_gpu_memory
from millrace.schedulers.memory import count_shortages

# Jobs of these rules take the GPUs that their layout says.
ON_LAYOUT = ("train_segment", "measure_throughput", "preflight_layout")
# Names that a cluster's facts may have, those of a module without its prefix; filled by `placed`.
RULES = set()
BEGAN = time.time()


def find_cluster():
    """The cluster that the profile names by the default resource `site`; None: this machine.

    A profile's configuration is lost as soon as the user gives a file, and a profile's `config` refuses
    `--config`. A default resource survives both and reaches the jobs.
    """
    given = workflow.resource_settings.default_resources
    if not given or "site" not in given:
        return None
    name = str(given["site"].raw).strip("'\"")
    # Beside the Snakefile that was started, then beside that of this module.
    places = (workflow.basedir, Path(str(workflow.current_basedir)).parents[1])
    found = Cluster.read(name, *(Path(place) / "profiles" for place in places))
    for layout in plan.layouts():
        found.place(Layout.parse(layout), ON_LAYOUT[0])
    if workflow.is_main_process:  # not in every job again
        found.check_folder(Path.cwd())
        check_gpu_memory(plan, found, logger.warning)
    return found


try:
    cluster = find_cluster()
except ConfigError as error:
    raise WorkflowError(str(error)) from None


@cache
def placement(rule, layout, memory=1):
    """Where a job goes on the cluster."""
    on = Layout.parse(layout) if rule in ON_LAYOUT else None
    try:
        return cluster.place(on, rule, memory)
    except ConfigError as error:
        raise WorkflowError(str(error)) from None


def placed(rule):
    """Resources of a rule on the cluster, whose name may hold wildcards; none on this machine."""

    def resource(key):
        def value(wildcards, attempt, rulename):
            job, lacked = rule.format(**wildcards), 0
            # More memory helps those that lacked it, not those whose node was lost.
            if attempt > 1:
                of_job = dict(wildcards.items())
                lacked = count_shortages(cluster.scheduler, rulename, of_job, BEGAN)
            memory = 1 + min(lacked, attempt - 1)
            made = placement(job, wildcards.get("layout"), memory).resources()
            return made.get(key)  # None: the job does not have it

        return value

    RULES.add(rule)
    keys = RESOURCES if cluster else ()
    starting = {"container": inside} if rule in ON_LAYOUT else {}
    return {"site": site} | starting | {key: resource(key) for key in keys}


def site(wildcards):
    """The cluster, for the job's own script."""
    check_cluster()
    # With its path, because a job cannot ask where the Snakefile is.
    return str(cluster.directory) if cluster else None


def cores(rule, local=1):
    """Threads of a rule: its CPU cores on a node of the cluster, else `local` or what that returns."""

    def threads(wildcards):
        if cluster is not None:
            job = rule.format(**wildcards)
            return placement(job, wildcards.get("layout")).cpus_per_node
        return local(wildcards) if callable(local) else local

    return threads


@cache
def check_cluster():
    """Refuse to submit jobs without the facts of a cluster, or without the account it asks for.

    Not in `onstart`, which Snakemake does not run for a module.
    """
    if not (workflow.is_main_process and workflow.non_local_exec):
        return
    if cluster is None:
        raise WorkflowError(
            "no cluster is known, so jobs would ask for nothing: use a profile of profiles/, and if you "
            "give --default-resources, which replaces those of the profile, add site=<name of the cluster>"
        )
    try:
        cluster.require_account()
        cluster.check_rules([*RULES, *plan.data.extractions()])
    except ConfigError as error:
        raise WorkflowError(str(error)) from None
