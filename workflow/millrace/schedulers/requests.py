"""The resources of a job as options of ``sbatch`` and ``qsub``.

Snakemake's plugin for SLURM submits the jobs of the workflow by itself; `sbatch_arguments` returns the same
options for jobs that are submitted without it.
"""

import re
from collections.abc import Mapping

_PBS_NAME_LENGTH = 15


def sbatch_arguments(resources: Mapping[str, object], name: str, log: str) -> list[str]:
    """Return the options of ``sbatch``, without the command.

    Parameters
    ----------
    resources : mapping
        See `millrace.cluster.placement.Placement.resources`; other keys are ignored.
    name : str
        Name of the job.
    log : str
        File of its output; SLURM replaces ``%j`` by the job's id.
    """
    arguments = [f"--job-name={name}", f"--output={log}"]
    options = (
        ("account", "slurm_account"), ("partition", "slurm_partition"), ("time", "runtime"),
        ("constraint", "constraint"), ("qos", "qos"), ("mem", "mem_mb"), ("nodes", "nodes"),
    )  # fmt: skip
    arguments += [f"--{option}={resources[key]}" for option, key in options if resources.get(key)]
    gres = resources.get("gres")
    if resources.get("mpi") or not gres:
        arguments.append(f"--ntasks={resources.get('tasks') or 1}")
    arguments.append(f"--cpus-per-task={resources.get('cpus_per_task') or 1}")
    arguments += str(resources.get("slurm_extra") or "").split()
    return [*arguments, f"--gres={gres}"] if gres else arguments


def qsub_arguments(resources: Mapping[str, object], name: str, log: str) -> list[str]:
    """Return the options of ``qsub`` of PBS Pro, without the script.

    Parameters
    ----------
    resources : mapping
        As for `sbatch_arguments`.
    name : str
        Name of the job; at most 15 letters, digits and underscores of it are kept.
    log : str
        File of its output and errors, or the directory of this file.
    """
    chunk = f"select={resources.get('nodes') or 1}:ncpus={resources.get('ncpus') or 1}"
    if resources.get("mem_mb"):
        chunk += f":mem={resources['mem_mb']}mb"
    chunk += "".join(f":{k}={resources[k]}" for k in ("ngpus", "gpu_model") if resources.get(k))
    arguments = ["-N", _pbs_name(name), "-j", "oe", "-o", log, "-l", chunk]
    if resources.get("place"):
        arguments += ["-l", f"place={resources['place']}"]
    if resources.get("runtime"):
        hours, minutes = divmod(int(str(resources["runtime"])), 60)
        arguments += ["-l", f"walltime={hours:02d}:{minutes:02d}:00"]
    for option, key in (("-q", "queue"), ("-P", "project"), ("-A", "account")):
        if resources.get(key):
            arguments += [option, str(resources[key])]
    return arguments


def _pbs_name(name: str) -> str:
    """Name that PBS accepts: it has neither special characters nor a leading digit."""
    safe = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    return (safe if safe[:1].isalpha() else f"j{safe}")[:_PBS_NAME_LENGTH]
