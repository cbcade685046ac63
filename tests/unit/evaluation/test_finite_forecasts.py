"""Forecasts that are infinite or NaN are not scored, in any system."""

from pathlib import Path

import pytest
import torch

from millrace.errors import NotFiniteError
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import resolve
from millrace.systems.registry import kind_of
from millrace.training.segment import build_trainer

MODELS = ("gino", "gfno", "downscaler", "regression", "aurora", "smart")


@pytest.mark.parametrize("name", MODELS)
def test_a_forecast_that_is_not_finite_ends_the_evaluation(experiments, alone, name):
    definition, files = experiments[name]
    trainer, _ = build_trainer(definition, files, 0, alone)
    with torch.no_grad():
        for parameter in trainer.module.parameters():
            parameter.fill_(torch.nan)
    model = TrainedModel(trainer.spec, trainer.module.eval(), trainer.dataset)
    paths = {role: Path(path) for role, path in files.items()}
    with pytest.raises(NotFiniteError, match="infinite or NaN, and nothing is written"):
        resolve(kind_of(name).evaluation).run(model, paths, None)
