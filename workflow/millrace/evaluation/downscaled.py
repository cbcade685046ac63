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

from millrace.data.block_view import BlockView, Split
from millrace.data.triangles import barycentric
from millrace.evaluation import downscaling_baselines as baselines
from millrace.evaluation.downscaling import DownscalingScores, Sphere
from millrace.models.downscaler import Downscaler
from millrace.models.sampling import SamplerConfig, sample

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
    view: BlockView,
    split: Split = "test",
    sampler: SamplerConfig | None = None,
    times: int = _TIMES,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], Example]:
    """Score a downscaler, or a regression, and the baselines on a split.

    Parameters
    ----------
    module : nn.Module
        A `Downscaler` gives an ensemble; any other module is deterministic.
    view : BlockView
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
    steps = view.times(split)
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(times, len(steps))).astype(int))]
    sphere = sphere_of(view)
    rivals = [_baselines(view, v) for v in range(len(view.config.variables))]
    names = ("model", *rivals[0])
    units = view.normalisation.increment_std_V
    scores = [{n: DownscalingScores(sphere, float(unit)) for n in names} for unit in units]
    example: Example | None = None
    for done, step in enumerate(steps):
        truth, coarse, ensemble = _downscaled(module, view, int(step), sampler)
        if example is None:
            example = Example(float(view.time[step]), truth, coarse, ensemble)
        for v, (of_variable, makers) in enumerate(zip(scores, rivals, strict=True)):
            of_variable["model"].update(truth[:, v], ensemble[..., v], coarse[:, v])
            for name, forecast in makers.items():
                field = forecast(coarse[None, :, v], view.time[[step]])
                of_variable[name].update(truth[:, v], field, coarse[:, v])
        if progress is not None:
            progress(done + 1, len(steps))
    assert example is not None
    results = {
        variable: {name: one.result() for name, one in of_variable.items()}
        for variable, of_variable in zip(view.config.variables, scores, strict=True)
    }
    return results, example


def sphere_of(view: BlockView) -> Sphere:
    """The grid of a view as the scores need it."""
    return Sphere(
        view.centres_N3, view.area_N, view.neighbours[0], view.geometry.n_blocks, view.land_N
    )


def _downscaled(
    module: nn.Module, view: BlockView, step: int, sampler: SamplerConfig
) -> tuple[Floats, Floats, Floats]:
    """Truth [N, V], block means [M, V] and ensemble [E, N, V] of a time, physical."""
    batch = view.at_times(np.array([step]))
    with torch.no_grad():
        if isinstance(module, Downscaler):
            drawn_ENV = sample(module, batch, sampler, [step])[:, 0]
        else:
            drawn_ENV = module(batch)
    coarse_MV = view.coarse_physical(batch.coarse_BMV)[0]
    own_NV = np.repeat(coarse_MV, len(view.area_N) // len(coarse_MV), axis=0)
    truth_NV = view.to_physical(batch.y_BNV)[0] + own_NV
    return truth_NV, coarse_MV, view.to_physical(drawn_ENV) + own_NV


def _baselines(view: BlockView, variable: int) -> dict[str, Callable[[Floats, Floats], Floats]]:
    """Forecasts by name: (coarse [T, M], time [T]) -> fine [T, N]."""
    n_cells = len(view.area_N)
    centres = view.geometry.block_centres_M3.double().cpu().numpy()
    matrix = barycentric(centres, view.centres_N3)
    fitted = baselines.LinearRegression.fit(
        _training_parts(view, variable), view.neighbours[-1], n_cells
    )
    return {
        "block_mean": lambda coarse, _: baselines.block_mean_copy(coarse, n_cells),
        "interpolation": lambda coarse, _: baselines.interpolation(coarse, matrix),
        "linear_regression": fitted,
    }


def _training_parts(view: BlockView, variable: int) -> Iterator[tuple[Floats, Floats, Floats]]:
    steps = view.times("train")
    for start in range(0, len(steps), _SLAB):
        part = steps[start : start + _SLAB]
        batch = view.at_times(part)
        coarse_TM = view.coarse_physical(batch.coarse_BMV)[..., variable]
        residual_TN = view.to_physical(batch.y_BNV)[..., variable]
        fine = baselines.block_mean_copy(coarse_TM, residual_TN.shape[1]) + residual_TN
        yield fine, coarse_TM, view.time[part]
