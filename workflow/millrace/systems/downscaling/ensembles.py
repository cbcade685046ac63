"""A trained downscaler on times it has not seen, beside its baselines.

Shape suffixes: N fine cells, M blocks, E members, T times.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from millrace.data.split import Split
from millrace.evaluation.cases import blocks_in_time, case_record, issue_times
from millrace.evaluation.trained_model import finite
from millrace.systems.base import Progress
from millrace.systems.downscaling import baselines
from millrace.systems.downscaling.dataset import BlockDataset
from millrace.systems.downscaling.diffusion import Downscaler
from millrace.systems.downscaling.icon_source import Floats
from millrace.systems.downscaling.sampling import SamplerConfig, expected_grid, sample_grid
from millrace.systems.downscaling.scores import DownscalingScores, Sphere
from millrace.systems.downscaling.triangles import barycentric

BLOCK_DAYS = 5.0
"""Within so many days the weather is not another one."""
_SLAB, _SLAB_CELLS = 32, 32 << 20
"""Times that are read at once, and most values of a variable."""


@dataclass(frozen=True, eq=False)
class Example:
    """Ground truth, block means and ensemble of a time (days since 1970), in physical units; errors."""

    time: float
    truth_NV: Floats
    coarse_MV: Floats
    ensemble_ENV: Floats
    cases: dict[str, Any] = field(default_factory=dict)
    """Errors of the model at each time of the evaluation, see `millrace.evaluation.cases`: times less than
    `BLOCK_DAYS` apart are in one block."""


def evaluate(
    module: nn.Module,
    dataset: BlockDataset,
    split: Split = "test",
    sampler: SamplerConfig | None = None,
    times: int = 8,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Example]:
    """Score a module and the baselines on at most so many ``times``, evenly spread over a split.

    A `Downscaler` gives an ensemble; any other module is deterministic. ``progress`` is called with (times
    done, all). Returns ``{variable: {forecast: scores}}``, see `DownscalingScores.result`, for the
    forecasts ``model``, ``block_mean``, ``interpolation`` and ``linear_regression``; and the first time.
    """
    sampler = sampler or SamplerConfig()
    steps = dataset.times(split)
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(times, len(steps))).astype(int))]
    sphere = sphere_of(dataset)
    rivals = [_baselines(dataset, v) for v in range(len(dataset.config.variables))]
    names = ("model", *rivals[0])
    units = dataset.normalisation.increment_std_V
    scores = [{n: DownscalingScores(sphere, float(unit)) for n in names} for unit in units]
    examples: list[Example] = []
    for done, step in enumerate(steps, start=1):
        shown = downscaled(module, dataset, int(step), sampler)
        examples = examples or [shown]
        for v, (of_variable, makers) in enumerate(zip(scores, rivals, strict=True)):
            truth, coarse = shown.truth_NV[:, v], shown.coarse_MV[:, v]
            of_variable["model"].update(truth, shown.ensemble_ENV[..., v], coarse)
            for name, forecast in makers.items():
                field = forecast(coarse[None], dataset.time[[step]])
                of_variable[name].update(truth, field, coarse)
        if progress is not None:
            progress(done, len(steps))
    results = {
        variable: {name: one.result() for name, one in of_variable.items()}
        for variable, of_variable in zip(dataset.config.variables, scores, strict=True)
    }
    errors = {
        variable: {key: (unit, values) for key, values in of_variable["model"].by_time().items()}
        for variable, unit, of_variable in zip(
            dataset.config.variables, dataset.units, scores, strict=True
        )
    }
    days = dataset.time[steps]
    cases = case_record(issue_times(days), blocks_in_time(days, BLOCK_DAYS), errors)
    return results, replace(examples[0], cases=cases)


def sphere_of(dataset: BlockDataset) -> Sphere:
    """The grid of a dataset as the scores need it."""
    neighbours, n_blocks = dataset.neighbours[0], dataset.grid.n_blocks
    return Sphere(dataset.centres_N3, dataset.area_N, neighbours, n_blocks, dataset.land_N)


def downscaled(
    module: nn.Module,
    dataset: BlockDataset,
    step: int,
    sampler: SamplerConfig,
    number: int | None = None,
) -> Example:
    """Ground truth, block means and forecasts of a time; the noise is of ``number``, else the same."""
    if isinstance(module, Downscaler):
        drawn_ENV = sample_grid(module, dataset, sampler, step, number)
    else:
        drawn_ENV = expected_grid(module, dataset, step)
    fine_TNV, coarse_TMV = dataset.fields(np.array([step]))
    coarse_MV = dataset.coarse_physical(coarse_TMV)[0]
    own_NV = np.repeat(coarse_MV, dataset.grid.per_block, axis=0)
    truth_NV = dataset.to_physical(fine_TNV)[0] + own_NV
    ensemble_ENV = dataset.to_physical(finite(drawn_ENV)) + own_NV
    return Example(float(dataset.time[step]), truth_NV, coarse_MV, ensemble_ENV)


def _baselines(
    dataset: BlockDataset, variable: int
) -> dict[str, Callable[[Floats, Floats], Floats]]:
    """Forecasts by name: (coarse [T, M], time [T]) -> fine [T, N]."""
    n_cells = len(dataset.area_N)
    # In the precision of the network's own interpolation.
    centres = dataset.grid.centres[-1].astype(np.float32).astype(np.float64)
    matrix = barycentric(centres, dataset.centres_N3)
    fitted = baselines.LinearRegression.fit(
        _training_parts(dataset, variable), dataset.neighbours[-1], n_cells
    )
    return {
        "block_mean": lambda coarse, _: baselines.block_mean_copy(coarse, n_cells),
        "interpolation": lambda coarse, _: baselines.interpolation(coarse, matrix),
        "linear_regression": fitted,
    }


def _training_parts(
    dataset: BlockDataset, variable: int
) -> Iterator[tuple[Floats, Floats, Floats]]:
    steps = dataset.times("train")
    slab = max(1, min(_SLAB, _SLAB_CELLS // dataset.grid.n_cells))
    for start in range(0, len(steps), slab):
        part = steps[start : start + slab]
        fine_TNV, coarse_TMV = dataset.fields(part)
        coarse_TM = dataset.coarse_physical(coarse_TMV)[..., variable]
        residual_TN = dataset.to_physical(fine_TNV)[..., variable]
        fine = baselines.block_mean_copy(coarse_TM, residual_TN.shape[1]) + residual_TN
        yield fine, coarse_TM, dataset.time[part]
