"""Forecasts of a trained model on periods it has not seen, window by window and as rollouts.

Shape suffixes: W windows, K core points of a patch, N nodes of the aquifer, T time steps, V variables.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace.data.split import Split
from millrace.evaluation.cases import blocks_in_time, case_record
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
    issue_T: Floats
    """Time of the last state that was given (d)."""
    truth_TNV: Floats
    prediction_TNV: Floats
    persistence_TNV: Floats
    cases: dict[str, Any]
    """Errors of each window of the period, see `millrace.evaluation.cases`: windows that overlap, or lie
    beside each other within one length of a window, are in one block."""


def batches(
    dataset: Any, split: Split, size: int, progress: Progress | None
) -> Iterator[tuple[int, NDArray[np.int64], Any]]:
    """All windows of a split, group by group: number of the group, of its windows, and their batch."""
    n_groups, n_windows = len(dataset.core_nodes), len(dataset.starts(split))
    parts = list(itertools.product(range(n_groups), range(0, n_windows, size)))
    for done, (group, first) in enumerate(parts, 1):
        windows = np.arange(first, min(first + size, n_windows))
        yield group, windows, dataset.batch(split, group, windows)
        if progress is not None:
            progress(done, len(parts))


def physical(dataset: Any, batch: Any, *forecasts: Tensor) -> list[Floats]:
    """Ground truth, persistence and forecasts in physical units, [B, K, T, V] each."""
    persistence = batch.last_KBV.unsqueeze(2).expand_as(batch.y_KBTV)
    fields = (batch.y_KBTV, persistence, *forecasts)
    return [dataset.to_physical(values).swapaxes(0, 1) for values in fields]


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
    n_nodes = sum(map(len, dataset.core_nodes))
    shape = (len(tiled), config.output_steps, n_nodes, len(config.variables))
    fields = [np.full(shape, np.nan) for _ in range(3)]
    square_WV = np.zeros((len(starts), len(config.variables)))
    for group, windows, batch in batches(dataset, split, _BATCH, progress):
        truth, persistence, forecast = physical(dataset, batch, model(batch))
        metrics.update(truth, forecast, persistence)
        square_WV[windows] += ((forecast - truth) ** 2).sum(axis=1).mean(axis=1) / n_nodes
        for i, window in enumerate(windows):
            if int(window) in slot:
                for field, values in zip(fields, (truth, forecast, persistence), strict=True):
                    field[slot[int(window)]][:, dataset.core_nodes[group]] = values[i].swapaxes(
                        0, 1
                    )
    steps = starts[tiled, None] + config.input_steps + np.arange(config.output_steps)
    issue = np.repeat(dataset.time[starts[tiled] + config.input_steps - 1], config.output_steps)
    truth_TNV, forecast_TNV, still_TNV = (f.reshape(-1, *f.shape[2:]) for f in fields)
    issued_W = dataset.time[starts + config.input_steps - 1]
    errors = {
        variable: {"rmse": (dataset.units[variable], np.sqrt(square_WV[:, v]))}
        for v, variable in enumerate(config.variables)
    }
    blocks = blocks_in_time(starts, config.length)
    cases = case_record([f"{time:.6f}" for time in issued_W], blocks, errors)
    return metrics.result(), Series(
        dataset.time[steps.ravel()], issue, truth_TNV, forecast_TNV, still_TNV, cases
    )


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
    truth_NWTV = true_states(model, starts, past + rounds * out)
    state_NWTV = truth_NWTV[:, :, :past].clone()
    for step in range(rounds):
        following = next_states(model, state_NWTV, starts + step * out)
        state_NWTV = torch.cat([state_NWTV, following], dim=2)
    metrics = FieldMetrics(config.variables, rounds * out)
    last_NWTV = truth_NWTV[:, :, past - 1 : past].expand(-1, -1, rounds * out, -1)
    metrics.update(
        *(
            dataset.to_physical(values).swapaxes(0, 1)
            for values in (truth_NWTV[:, :, past:], state_NWTV[:, :, past:], last_NWTV)
        )
    )
    lead_days = mean_leads(dataset, starts, rounds * out)
    return {"lead_days": lead_days.tolist(), "starts": len(starts), "variables": metrics.result()}


def mean_leads(dataset: Any, starts: np.ndarray, steps: int) -> Floats:
    """Mean lead times (d) of forecasts by windows at ``starts``, float64[steps]."""
    issued = starts[:, None] + dataset.config.input_steps - 1
    leads: Floats = dataset.time[issued + 1 + np.arange(steps)] - dataset.time[issued]
    return leads.mean(axis=0)


def true_states(model: TrainedModel, starts: np.ndarray, length: int) -> Tensor:
    """States of all nodes in the steps from each start on, normalised, [N, W, T, V]."""
    dataset = model.dataset
    steps = starts[:, None] + np.arange(length)
    size = (sum(map(len, dataset.core_nodes)), *steps.shape, len(dataset.config.variables))
    states = torch.empty(size, device=dataset.device)
    for group, core in enumerate(dataset.core_nodes):
        states[torch.from_numpy(core)] = dataset.core_states(group, steps)
    return states


def next_states(model: TrainedModel, state_NWTV: Tensor, starts: np.ndarray) -> Tensor:
    """Forecast of all nodes from the last of their states, with the forcings of windows at ``starts``."""
    dataset, config = model.dataset, model.dataset.config
    past_NWTV = state_NWTV[:, :, -config.input_steps :]
    size = (*state_NWTV.shape[:2], config.output_steps, state_NWTV.shape[3])
    result = torch.empty(size, device=state_NWTV.device)
    for group, core in enumerate(dataset.core_nodes):
        nodes = torch.from_numpy(np.concatenate([core, dataset.ghost_nodes[group]]))
        batch = dataset.with_states(dataset.at_times(group, starts), past_NWTV[nodes])
        result[nodes[: len(core)]] = model(batch)
    return result
