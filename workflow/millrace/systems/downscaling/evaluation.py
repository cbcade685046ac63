"""Scores and figures of downscaled fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from millrace.evaluation.base import Draw, Evaluation
from millrace.evaluation.trained_model import TrainedModel
from millrace.figures.style import attempt
from millrace.systems.base import Progress
from millrace.systems.downscaling.dataset import BlockDataset
from millrace.systems.downscaling.ensembles import Example
from millrace.systems.downscaling.ensembles import evaluate as score
from millrace.systems.downscaling.figures.scores import by_region, reliability, spectra
from millrace.systems.downscaling.figures.sphere import Panel, sphere_maps
from millrace.systems.downscaling.sampling import SamplerConfig

# The CRPS does not depend on the number of members, so that few will do to compare periods.
_VALIDATION_TIMES, VALIDATION_SAMPLER = 4, SamplerConfig(members=4)


def evaluate(
    model: TrainedModel, files: Mapping[str, Path], progress: Progress | None = None
) -> tuple[dict[str, Any], Draw]:
    """Score a model and its baselines on validation and test period; figures are by variable.

    See `millrace.evaluation.base.Evaluation`. Scores are ``{variable: {forecast: scores}}``.
    """
    validation, _ = score(
        model.module, model.dataset, "validation", VALIDATION_SAMPLER, _VALIDATION_TIMES
    )
    test, example = score(model.module, model.dataset, "test", progress=progress)

    def draw(figures: Path) -> None:
        for v, variable in enumerate(model.dataset.config.variables):
            _draw(model.dataset, v, test[variable], example, figures / variable)

    return {"validation": validation, "test": test, "cases": example.cases}, draw


def _draw(
    dataset: BlockDataset, v: int, forecasts: Mapping[str, Any], example: Example, folder: Path
) -> None:
    variable, unit = dataset.config.variables[v], dataset.units[v]
    ensemble_EN = example.ensemble_ENV[..., v]
    coarse_M = example.coarse_MV[:, v]
    panels = [
        Panel(f"Ground truth, {_moment(example.time)}", example.truth_NV[:, v]),
        Panel("Given: means of blocks", np.repeat(coarse_M, len(dataset.area_N) // len(coarse_M))),
    ]
    labels = {"field": (variable, unit)}
    if len(ensemble_EN) == 1:
        panels.append(Panel("Model", ensemble_EN[0]))
    else:
        panels += [Panel(f"Member {e + 1}", ensemble_EN[e]) for e in range(2)]
        panels.append(Panel(f"Mean of {len(ensemble_EN)} members", ensemble_EN.mean(axis=0)))
        panels.append(Panel("Their spread", ensemble_EN.std(axis=0, ddof=1), "spread"))
        labels["spread"] = ("spread", unit)
        with attempt(folder / "reliability.png") as path:
            reliability(forecasts["model"], unit, path)
    with attempt(folder / "maps.png") as path:
        sphere_maps(dataset.centres_N3, panels, labels, path, dataset.land_N)
    with attempt(folder / "spectra.png") as path:
        spectra(forecasts, unit, path)
    with attempt(folder / "regions.png") as path:
        by_region(forecasts, unit, path)


def _moment(days: float) -> str:
    """A time, of days since 1970, to the minute."""
    return str(np.datetime64(round(days * 1440), "m")).replace("T", " ") + " UTC"


EVALUATION = Evaluation(evaluate)
