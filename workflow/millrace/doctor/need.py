"""Estimate of the disk space of a configuration, from existing checkpoints."""

from pathlib import Path

from millrace.errors import ConfigError
from millrace.plan import Plan
from millrace.yaml_files import read_yaml

# Number of steps in a store besides its milestones, with the one that is being written.
_KEPT = 3
_DEFAULT_GB = 10.0


def wanted_space(config: Path, runs: Path) -> tuple[float, str]:
    """Estimate the space of all checkpoints of a configuration of the workflow.

    The largest checkpoint of the stores ``runs`` is taken for all. Returns the space in 10⁹ bytes, 10 if
    there is no checkpoint, and the source of the number.
    """
    largest = max((_bytes(step) for step in runs.rglob("step_*")), default=0)
    count = _checkpoints(config)
    if not (largest and count):
        return _DEFAULT_GB, "a guess without any checkpoint, --need-gb sets it"
    total = largest * count / 1e9
    return total, f"{count} checkpoints of {largest / 1e6:,.1f} MB, by {config}"


def _checkpoints(config: Path) -> int:
    """Number of milestones of all runs, and of the steps that are kept besides."""
    try:
        described = read_yaml(config)
        plan = Plan(described)
    except ConfigError:
        return 0  # Snakemake reports what is wrong with it
    run = described["run"]
    per_seed = sum(len(plan.milestones(name)) + _KEPT for name in run["experiments"])
    return per_seed * len(run["layouts"]) * len(run["seeds"])


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
