"""Evaluation of trained models: scores on validation and test period, and the figures of the report.

Scores and figures depend on the kind of samples; the files of all metrics have the same structure.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from millrace.data.joint import JointDataset
from millrace.data.samples import Files, datasets_of
from millrace.errors import ConfigError
from millrace.evaluation.base import Evaluation
from millrace.evaluation.trained_model import TrainedModel, read_training
from millrace.evaluation.training_record import problems, training_record
from millrace.figures.style import attempt
from millrace.figures.training import training_curves
from millrace.provenance import provenance
from millrace.sealed import write_sealed
from millrace.systems.base import Progress, resolve
from millrace.systems.registry import kind_of


def evaluate_run(
    checkpoint: Path,
    receipt: Path,
    files: Files,
    metrics: Path,
    figures: Path,
    curves: Path,
    progress: Progress | None = None,
) -> None:
    """Score a checkpoint, with its receipt and sample files by role, and draw its figures.

    The JSON file ``metrics`` gets scores by split, what was evaluated, and the kind of its ``samples``. For
    a model of several datasets these are the scores on the first, and ``datasets`` has those on each. The
    directory ``figures`` then gets one folder for each variable of the first dataset, and ``curves`` is the
    figure of the training.
    """
    described = read_training(receipt)
    model = TrainedModel.load(checkpoint, described, files)
    kind = kind_of(model.spec.name)
    evaluation: Evaluation = resolve(kind.evaluation)
    figures.mkdir(parents=True, exist_ok=True)
    joint = model.dataset
    datasets = joint.datasets if isinstance(joint, JointDataset) else [joint]
    scores: list[dict] = []
    draws = []
    for dataset, of_dataset in zip(datasets, datasets_of(files), strict=True):
        told = None if scores else progress
        one, draw = evaluation.run(replace(model, dataset=dataset), of_dataset, told)
        scores.append(one)
        draws.append(draw)
    keys = ("experiment", "layout", "seed", "epoch", "identity")
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    found = {
        "schema": "millrace.metrics/1",
        "samples": kind.name,
        **{key: described[key] for key in keys},
        **scores[0],
        **({"datasets": scores} if len(scores) > 1 else {}),
        "training": training_record(described, parameters),
        "provenance": provenance(),
    }
    write_sealed(metrics, found)
    not_learning = problems(found)
    for problem in not_learning:
        print(f"WARNING: the run does not learn: {problem}", file=sys.stderr)
    with attempt(curves, required=True):
        training_curves(described["history"], curves, not_learning)
    draws[0](figures)


def evaluate_ensemble(
    checkpoints: Sequence[Path],
    receipts: Sequence[Path],
    files: Files,
    metrics: Path,
    figure: Path,
    progress: Progress | None = None,
) -> None:
    """Score the runs of an experiment and layout with all their seeds, on the first dataset.

    ``checkpoints`` and ``receipts`` are outputs of the training, one of each for every seed. Writes the
    JSON file ``metrics``, with scores by split, and a figure. Raises `ConfigError` if models on these
    samples are not scored as ensembles.
    """
    described = [read_training(receipt) for receipt in receipts]
    models = [
        TrainedModel.load(checkpoint, receipt, files)
        for checkpoint, receipt in zip(checkpoints, described, strict=True)
    ]
    kind = kind_of(models[0].spec.name)
    evaluation: Evaluation = resolve(kind.evaluation)
    if evaluation.ensemble is None:
        raise ConfigError(
            f"models on {kind.name} are not scored as ensembles over seeds; evaluate each"
        )
    scores, draw = evaluation.ensemble(models, progress)
    write_sealed(
        metrics,
        {
            "schema": "millrace.ensemble_metrics/1",
            "samples": kind.name,
            **{key: described[0][key] for key in ("experiment", "layout")},
            **{f"{key}s": [one[key] for one in described] for key in ("seed", "epoch")},
            "identities": [one["identity"] for one in described],
            **scores,
            "provenance": provenance(),
        },
    )
    with attempt(figure, required=True):
        draw(figure)
