"""Scores and figures of downscaled fields."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from millrace.evaluation.downscaled import evaluate as score
from millrace.evaluation.forecast import TrainedModel

Progress = Callable[[int, int], None]


def evaluate(
    model: TrainedModel,
    files: Mapping[str, Path],
    figures: Path | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a model and its baselines on validation and test period.

    See `millrace.evaluate.Evaluation`. Scores are ``{variable: {forecast: scores}}``.
    """
    validation, _ = score(model.module, model.view, "validation", times=4)
    test, _ = score(model.module, model.view, "test", progress=progress)
    return {"validation": validation, "test": test}
