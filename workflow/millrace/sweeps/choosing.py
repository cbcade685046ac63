"""The chosen trial of a sweep, as a configuration of its own."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from millrace.errors import DataError
from millrace.files import atomic_write
from millrace.sweeps.outcome import Outcome, read_outcomes
from millrace.sweeps.sweep import Sweep
from millrace.systems.base import dataset_names


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return outcomes from best to worst.

    Those that were trained longest come first, those that failed last. Of equally long ones a lower
    validation loss is better, of equal losses the one that was asked for first.
    """
    return sorted(outcomes, key=lambda one: (one.loss() == math.inf, -one.epoch, one.loss()))


def write_chosen(
    sweep: Sweep, config: Mapping[str, Any], receipts: Sequence[str], output: Path
) -> None:
    """Write the best trial as a configuration that Snakemake takes at once.

    It asks for the trial as an experiment written by hand, under the name of the trial, so that its runs
    are found again. Raises `DataError` if all trials failed.
    """
    outcomes = read_outcomes(receipts)
    best = ranked(outcomes)[0]
    if best.loss() == math.inf:
        raise DataError(
            f"the sweep of {sweep.experiment}: all {len(outcomes)} trials failed, the first because "
            f"{best.failure}; try other values"
        )
    block = config["experiments"][sweep.experiment]
    values = sweep.values(best.trial) or {}
    made: dict[str, Any] = {
        "run": {**config["run"], "experiments": [best.trial]},
        "datasets": {name: config["datasets"][name] for name in dataset_names(block)},
        "experiments": {best.trial: sweep.block(block, values)},
    }
    if config.get("plugins"):
        made = {"plugins": list(config["plugins"]), **made}
    head = (
        f"# Chosen by the sweep of {sweep.experiment}: the lowest validation loss, {best.loss():.6g}, of "
        f"{len(outcomes)} trials.\n# snakemake --profile profiles/local --configfile {output}\n"
    )
    with atomic_write(output) as partial:
        plain = json.loads(json.dumps(made))  # no subclasses of dict
        partial.write_text(head + yaml.safe_dump(plain, sort_keys=False))


def read_chosen(path: Path) -> str:
    """Return the name of the chosen trial; raises `DataError` if the file is damaged."""
    try:
        [name] = yaml.safe_load(path.read_text())["experiments"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        raise DataError(
            f"{path}: damaged, it names no chosen trial; delete it: the workflow makes it again"
        ) from None
    return str(name)
