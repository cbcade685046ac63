"""Requests of the jobs that train and measure, from what their rules know."""

from collections.abc import Mapping, Sequence
from typing import Any

from millrace.scaling.request import MeasureRequest
from millrace.systems.registry import load_plugins
from millrace.training.request import EXECUTION, Request


def segment_request(
    config: Mapping[str, Any],
    wildcards: Any,
    definition: Mapping[str, Any],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, str],
) -> Request:
    """Describe the training of a segment.

    Values that are read from ``config``, and not from the definition, are not parameters of the rule:
    changing them must not start a run again. The wildcards are ``experiment, layout, seed, epoch``; for the
    definition see `millrace.plan.Plan.definition`; inputs and outputs are the files of the rule.
    """
    w = wildcards
    train = config["experiments"][w.experiment]["train"]
    # The stores are beside results/, also below the prefix of a module.
    below = outputs["checkpoint"].rpartition("results/train/")[0]
    return Request(
        **_common(config, w, definition, inputs),
        seed=int(w.seed),
        target_epoch=int(w.epoch),
        runs=f"{below}runs/{w.experiment}/{w.layout}/seed{w.seed}",
        checkpoint=outputs["checkpoint"],
        receipt=outputs["receipt"],
        save_every=train.get("save_every", 1),
        save_steps=train.get("save_steps"),
        save_minutes=train.get("save_minutes"),
        previous=str(inputs.get("previous") or "") or None,
        final_epoch=train["epochs"],
    )


def measure_request(
    config: Mapping[str, Any], wildcards: Any, params: Any, inputs: Mapping[str, Any], output: str
) -> MeasureRequest:
    """Describe the measurement of a layout; the parameters are those of `segment_request`."""
    w = wildcards
    # These two keys only record the run.
    common = _common(config, w, params.definition, inputs, without=("profile", "log"))
    own = {"mode": w.mode, "repeat": int(w.repeat), "output": output, "steps": params.steps}
    return MeasureRequest(**common, **own)


def _common(
    config: Mapping[str, Any],
    wildcards: Any,
    definition: Mapping[str, Any],
    inputs: Mapping[str, Any],
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Fields of both requests; ``without`` are keys of the execution to leave out."""
    experiment = config["experiments"][wildcards.experiment]
    keys = set(EXECUTION) - set(without)
    files = {k: v for k, v in inputs.items() if k not in ("previous", "init_from")}
    return {
        "experiment": wildcards.experiment,
        "layout": wildcards.layout,
        "definition": _started_from(definition, inputs),
        "files": {k: v if isinstance(v, str) else list(v) for k, v in files.items()},
        "execution": {k: v for k, v in experiment["train"].items() if k in keys},
        "parallel": experiment.get("parallel", {}),
        "plugins": load_plugins(config.get("plugins", [])),
    }


def _started_from(definition: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Definition in which ``init_from`` names the actual checkpoint, that of this run's seed."""
    if not inputs.get("init_from"):
        return dict(definition)
    [checkpoint], train = inputs["init_from"], definition["train"]
    key = "published" if train["init_from"].get("published") else "checkpoint"
    init_from = {**train["init_from"], key: str(checkpoint)}
    return {**definition, "train": {**train, "init_from": init_from}}
