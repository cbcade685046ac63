"""A trained downscaler on times it has not seen, beside its baselines.

Shape suffixes: N fine cells, M blocks, E members, T times.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from millrace.systems.base import Progress
from millrace.systems.downscaling import baselines
from millrace.systems.downscaling.dataset import BlockDataset, Split
from millrace.systems.downscaling.diffusion import Downscaler
from millrace.systems.downscaling.sampling import SamplerConfig, sample
from millrace.systems.downscaling.scores import DownscalingScores, Sphere
from millrace.systems.downscaling.triangles import barycentric

Floats = NDArray[np.float64]

_TIMES = 8
_SLAB = 32


@dataclass(frozen=True, eq=False)
class Example:
    """A time in full, for maps."""

    time: float
    """Days since 1970."""
    truth_NV: Floats
    coarse_MV: Floats
    ensemble_ENV: Floats


def evaluate(
    module: nn.Module,
    dataset: BlockDataset,
    split: Split = "test",
    sampler: SamplerConfig | None = None,
    times: int = _TIMES,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Example]:
    """Score a downscaler, or a regression, and the baselines on a split.

    Parameters
    ----------
    module : nn.Module
        A `Downscaler` gives an ensemble; any other module is deterministic.
    dataset : BlockDataset
    split : {"validation", "test"}
    sampler : SamplerConfig, optional
    times : int
        At most so many, evenly spread over the split.
    progress : callable, optional
        Called with (times done, all).

    Returns
    -------
    scores : dict
        ``{variable: {forecast: scores}}``, see `DownscalingScores.result`; forecasts are ``model``,
        ``block_mean``, ``interpolation`` and ``linear_regression``.
    example : Example
        The first of the times.
    """
    sampler = sampler or SamplerConfig()
    steps = dataset.times(split)
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(times, len(steps))).astype(int))]
    sphere = sphere_of(dataset)
    rivals = [_baselines(dataset, v) for v in range(len(dataset.config.variables))]
    names = ("model", *rivals[0])
    units = dataset.normalisation.increment_std_V
    scores = [{n: DownscalingScores(sphere, float(unit)) for n in names} for unit in units]
    example: Example | None = None
    for done, step in enumerate(steps):
        truth, coarse, ensemble = _downscaled(module, dataset, int(step), sampler)
        if example is None:
            example = Example(float(dataset.time[step]), truth, coarse, ensemble)
        for v, (of_variable, makers) in enumerate(zip(scores, rivals, strict=True)):
            of_variable["model"].update(truth[:, v], ensemble[..., v], coarse[:, v])
            for name, forecast in makers.items():
                field = forecast(coarse[None, :, v], dataset.time[[step]])
                of_variable[name].update(truth[:, v], field, coarse[:, v])
        if progress is not None:
            progress(done + 1, len(steps))
    assert example is not None
    results = {
        variable: {name: one.result() for name, one in of_variable.items()}
        for variable, of_variable in zip(dataset.config.variables, scores, strict=True)
    }
    return results, example


def sphere_of(dataset: BlockDataset) -> Sphere:
    """The grid of a dataset as the scores need it."""
    return Sphere(
        dataset.centres_N3,
        dataset.area_N,
        dataset.neighbours[0],
        dataset.geometry.n_blocks,
        dataset.land_N,
    )


def _downscaled(
    module: nn.Module, dataset: BlockDataset, step: int, sampler: SamplerConfig
) -> tuple[Floats, Floats, Floats]:
    """Truth [N, V], block means [M, V] and ensemble [E, N, V] of a time, physical."""
    batch = dataset.at_times(np.array([step]))
    with torch.no_grad():
        if isinstance(module, Downscaler):
            drawn_ENV = sample(module, batch, sampler, [step])[:, 0]
        else:
            drawn_ENV = module(batch)
    coarse_MV = dataset.coarse_physical(batch.coarse_BMV)[0]
    own_NV = np.repeat(coarse_MV, len(dataset.area_N) // len(coarse_MV), axis=0)
    truth_NV = dataset.to_physical(batch.y_BNV)[0] + own_NV
    return truth_NV, coarse_MV, dataset.to_physical(drawn_ENV) + own_NV


def _baselines(
    dataset: BlockDataset, variable: int
) -> dict[str, Callable[[Floats, Floats], Floats]]:
    """Forecasts by name: (coarse [T, M], time [T]) -> fine [T, N]."""
    n_cells = len(dataset.area_N)
    centres = dataset.geometry.block_centres_M3.double().cpu().numpy()
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
    for start in range(0, len(steps), _SLAB):
        part = steps[start : start + _SLAB]
        batch = dataset.at_times(part)
        coarse_TM = dataset.coarse_physical(batch.coarse_BMV)[..., variable]
        residual_TN = dataset.to_physical(batch.y_BNV)[..., variable]
        fine = baselines.block_mean_copy(coarse_TM, residual_TN.shape[1]) + residual_TN
        yield fine, coarse_TM, dataset.time[part]
