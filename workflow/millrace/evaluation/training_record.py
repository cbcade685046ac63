"""What the table of scores says of a training: size, time, and whether it learned."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millrace.errors import DataError
from millrace.sealed import read_sealed
from millrace.systems.registry import get_kind
from millrace.training import run_hash
from millrace.training.learning import repeated_baseline, stalled_loss
from millrace.training.receipt import read_receipt

_CPU = "CPU"
# Kind of metrics files without one, from versions in which all models were on patches or planes, which
# share a table.
_FIRST_KIND = "patches"


def training_record(receipt: Mapping[str, Any], parameters: int | None = None) -> dict[str, Any]:
    """Return the entry ``training`` of `metrics.json`, from the receipt of the checkpoint.

    ``seconds`` are those of the training steps, without start, validation, and what a kill undid;
    ``gpu_hours`` and ``cpu_hours`` their hours times the ranks on GPUs and on CPUs. ``settings`` is the
    same for runs that differ in their seed only. ``stalled`` is the sentence of `stalled_loss`.
    """
    sessions = {one["session"]: one for one in receipt["sessions"]}
    hours: Counter[str] = Counter()
    devices: dict[str, None] = {}
    for record in receipt["history"]:
        session = sessions[record["session"]]
        kind = "cpu_hours" if session["device"] == _CPU else "gpu_hours"
        hours[kind] += record["seconds"] * session["ranks"] / 3600
        devices[f"{session['ranks']} × {session['device']}"] = None
    return {
        "parameters": parameters,
        "epochs": len(receipt["history"]),
        "seconds": sum(record["seconds"] for record in receipt["history"]),
        "gpu_hours": hours["gpu_hours"],
        "cpu_hours": hours["cpu_hours"],
        "devices": list(devices),
        "settings": run_hash.digest(receipt["definition"]),
        "stalled": stalled_loss(receipt["history"]),
    }


def read_scores(path: Path) -> dict[str, Any]:
    """Read `metrics.json` as it stands; raises `DataError` if it is missing or damaged."""
    remedy = "delete it and run the evaluate stage again"
    return read_sealed(path, "a file of scores", "run the evaluate stage first", remedy)


def read_metrics(path: Path) -> dict[str, Any]:
    """Read `metrics.json` of a run or of an ensemble; raises `ConfigError` if its samples are not known.

    Runs that were scored by an earlier version get ``samples`` and ``training``, the latter from the
    receipt of the checkpoint, if it is still there.
    """
    metrics = read_scores(path)
    get_kind(metrics.setdefault("samples", _FIRST_KIND))
    if "seed" in metrics and "training" not in metrics:
        metrics["training"] = _from_receipt(path, metrics)
    return metrics


def problems(metrics: Mapping[str, Any]) -> list[str]:
    """Tell why a run does not seem to learn, from its `metrics.json`; nothing about other seeds."""
    stalled = metrics.get("training", {}).get("stalled")
    errors = get_kind(metrics["samples"]).table.errors(metrics)
    return [found for found in (stalled, errors and repeated_baseline(errors)) if found]


def _from_receipt(path: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Record of the checkpoint that was scored, empty without its receipt."""
    run = path.absolute().parent
    folder = run.parents[3] / "train" / run.relative_to(run.parents[2])
    for receipt in sorted(folder.glob("epoch_*.json")):
        try:
            described = read_receipt(receipt, ["identity", "epoch"])
        except DataError:
            continue
        if all(described.get(key) == metrics.get(key) for key in ("identity", "epoch")):
            return training_record(described)
    return {}
