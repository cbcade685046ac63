"""Forecasts of a trained model on periods it has not seen, window by window and as rollouts.

Shape suffixes: W windows, K core points of a patch, N nodes of the aquifer, T time steps, V variables.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace.data.split import Split
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress
from millrace.systems.groundwater.scores import FieldMetrics

Floats = NDArray[np.float64]

_BATCH = 16
# Rollouts begin at this many times, evenly spread over the period.
_ROLLOUTS = 8


@dataclass(frozen=True)
class Series:
    """Consecutive forecasts of one period put together: what the figures show."""

    time_T: Floats
    """Days."""
    truth_TNV: Floats
    prediction_TNV: Floats
    persistence_TNV: Floats


def forecast_windows(
    model: TrainedModel, split: Split, progress: Progress | None = None
) -> tuple[dict[str, Any], Series]:
    """Forecast every window of a split from true states.

    Returns
    -------
    metrics : dict
        `FieldMetrics.result` over all windows and core nodes, in physical units.
    series : Series
        Forecasts of the windows that follow each other without overlap.
    """
    dataset, config = model.dataset, model.dataset.config
    starts = dataset.starts(split)
    metrics = FieldMetrics(config.variables, config.output_steps)
    tiled = np.flatnonzero((starts - starts[0]) % config.output_steps == 0)
    slot = {int(window): position for position, window in enumerate(tiled)}
    n_nodes = sum(len(nodes) for nodes in dataset.core_nodes)
    shape = (len(tiled), config.output_steps, n_nodes, len(config.variables))
    fields = [np.full(shape, np.nan) for _ in range(3)]
    n_batches = -(-len(starts) // _BATCH)
    for patch, core in enumerate(dataset.core_nodes):
        for b in range(n_batches):
            windows = np.arange(b * _BATCH, min((b + 1) * _BATCH, len(starts)))
            batch = dataset.batch(split, patch, windows)
            last_KBTV = batch.last_KBV.unsqueeze(2).expand_as(batch.y_KBTV)
            arrays = [
                dataset.to_physical(values).swapaxes(0, 1)  # [W, K, T, V]
                for values in (batch.y_KBTV, model(batch), last_KBTV)
            ]
            metrics.update(*arrays)
            for i, window in enumerate(windows):
                if int(window) in slot:
                    for field, values in zip(fields, arrays, strict=True):
                        field[slot[int(window)]][:, core] = values[i].swapaxes(0, 1)
            if progress is not None:
                progress(patch * n_batches + b + 1, len(dataset.core_nodes) * n_batches)
    steps = starts[tiled, None] + config.input_steps + np.arange(config.output_steps)
    flat = [field.reshape(-1, *field.shape[2:]) for field in fields]
    return metrics.result(), Series(dataset.time[steps.ravel()], *flat)


def rollout(model: TrainedModel, split: Split, max_steps: int = 40) -> dict[str, Any]:
    """Forecast far ahead: the model feeds on its own output.

    All patches step together; after each step the ghost nodes of a patch take the states that their
    own patches predicted.

    Parameters
    ----------
    model : TrainedModel
    split : {"validation", "test"}
        Period; several starts are spread over it.
    max_steps : int
        Longest lead time, shortened to what the period holds.

    Returns
    -------
    dict
        `FieldMetrics.result` by lead step, against persistence of the last given state, with
        ``lead_days``: the mean lead times.
    """
    dataset, config = model.dataset, model.dataset.config
    out, past = config.output_steps, config.input_steps
    windows = dataset.starts(split)
    available = int(windows[-1]) + config.length - int(windows[0]) - past
    rounds = max(1, min(max_steps, available) // out)
    last_start = int(windows[-1]) + config.length - past - rounds * out
    starts = np.unique(np.linspace(windows[0], last_start, _ROLLOUTS).astype(int))
    truth_NWTV = _true_states(model, starts, past + rounds * out)
    state_NWTV = truth_NWTV[:, :, :past].clone()
    for step in range(rounds):
        state_NWTV = torch.cat([state_NWTV, _next_states(model, state_NWTV, starts, step)], dim=2)
    metrics = FieldMetrics(config.variables, rounds * out)
    last_NWTV = truth_NWTV[:, :, past - 1 : past].expand(-1, -1, rounds * out, -1)
    metrics.update(
        *(
            dataset.to_physical(values).swapaxes(0, 1)
            for values in (truth_NWTV[:, :, past:], state_NWTV[:, :, past:], last_NWTV)
        )
    )
    steps = starts[:, None] + past + np.arange(rounds * out)
    lead_days = (dataset.time[steps] - dataset.time[starts + past - 1][:, None]).mean(axis=0)
    return {"lead_days": lead_days.tolist(), "starts": len(starts), "variables": metrics.result()}


def _true_states(model: TrainedModel, starts: np.ndarray, length: int) -> Tensor:
    dataset = model.dataset
    steps = starts[:, None] + np.arange(length)
    n_nodes = sum(len(nodes) for nodes in dataset.core_nodes)
    states = torch.empty(
        n_nodes, *steps.shape, len(dataset.config.variables), device=dataset.device
    )
    for patch, core in enumerate(dataset.core_nodes):
        states[torch.from_numpy(core)] = dataset.core_states(patch, steps)
    return states


def _next_states(model: TrainedModel, state_NWTV: Tensor, starts: np.ndarray, step: int) -> Tensor:
    dataset, config = model.dataset, model.dataset.config
    past_NWTV = state_NWTV[:, :, -config.input_steps :]
    size = (*state_NWTV.shape[:2], config.output_steps, state_NWTV.shape[3])
    result = torch.empty(size, device=state_NWTV.device)
    for patch, (core, ghost) in enumerate(
        zip(dataset.core_nodes, dataset.ghost_nodes, strict=True)
    ):
        nodes = torch.from_numpy(np.concatenate([core, ghost]))
        batch = dataset.at_times(patch, starts + step * config.output_steps)
        result[nodes[: len(core)]] = model(dataset.with_states(batch, past_NWTV[nodes]))
    return result
