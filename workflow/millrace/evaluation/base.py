"""How models on samples of one kind are scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress

Draw = Callable[[Path], None]
"""Draws figures into a folder for each variable; one that cannot be drawn is left out with a warning."""


@dataclass(frozen=True)
class Evaluation:
    """How models on samples of one kind are scored."""

    run: Callable[[TrainedModel, Mapping[str, Path], Progress | None], tuple[dict[str, Any], Draw]]
    """(model, sample files by role, progress) -> scores for JSON, at least ``validation`` and ``test``, and
    what draws the figures, which is called when the scores are written."""
    ensemble: (
        Callable[[Sequence[TrainedModel], Progress | None], tuple[dict[str, Any], Draw]] | None
    ) = None
    """(models of all seeds, progress) -> scores of their ensemble, and what draws them into one file;
    None: models are not scored as ensembles."""
