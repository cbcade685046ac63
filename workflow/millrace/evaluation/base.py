"""How models on samples of one kind are scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress


@dataclass(frozen=True)
class Evaluation:
    """How models on samples of one kind are scored."""

    run: Callable[[TrainedModel, Mapping[str, Path], Path | None, Progress | None], dict[str, Any]]
    """(model, sample files by role, folder for figures or None, progress) -> scores for JSON, at least
    ``validation`` and ``test``; draws figures into a folder for each variable."""
    ensemble: Callable[[Sequence[TrainedModel], Path, Progress | None], dict[str, Any]] | None = (
        None
    )
    """(models of all seeds, figure to draw, progress) -> scores of their ensemble; None: models are not
    scored as ensembles."""
