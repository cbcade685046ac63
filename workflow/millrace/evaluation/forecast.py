"""Forecasts of a trained model on periods it has not seen, window by window and as rollouts.

Shape suffixes: W windows, K core points of a patch, N nodes of the aquifer, T time steps, V variables.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from millrace.config import from_mapping
from millrace.data.normalisation import Normalisation
from millrace.data.views import Files, open_view
from millrace.data.window_view import Split
from millrace.errors import DataError
from millrace.evaluation.metrics import FieldMetrics
from millrace.models.registry import get_model
from millrace.models.spec import ModelSpec
from millrace.training.store import checksum, load_state, weights_of
from millrace.training.warm_start import check_bound

Floats = NDArray[np.float64]

_BATCH = 16
# Rollouts begin at this many times, evenly spread over the period.
_ROLLOUTS = 8


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights and the samples it was made for."""

    spec: ModelSpec
    module: nn.Module
    view: Any
    """`PatchView` or `PlaneView`."""

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        receipt: Mapping[str, Any],
        files: Files,
        device: torch.device | None = None,
        statistics: Normalisation | None = None,
    ) -> "TrainedModel":
        """Rebuild the model of a checkpoint.

        Parameters
        ----------
        checkpoint : Path
        receipt : mapping
            Written with it; says what the checkpoint is.
        files : mapping
            Sample files by role.
        device : torch.device, optional
            By default the GPU, if there is one.
        statistics : Normalisation, optional
            Of the data that the model was trained on, if ``files`` hold other data.

        Raises
        ------
        DataError
            The checkpoint is damaged.
        """
        if checksum(checkpoint) != receipt["checkpoint"]["crc32"]:
            raise DataError(
                f"{checkpoint}: damaged, its checksum is not the one of its receipt; delete it and run "
                "again: it is restored from the run's store"
            )
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        definition = receipt["definition"]
        parameters = dict(definition["model"])
        spec = get_model(parameters.pop("name"))
        view = open_view(spec.view, files, definition["data"], device, statistics)
        module = spec.build(from_mapping(spec.config, parameters, "model"), view).to(device)
        weights = weights_of(load_state(checkpoint))
        check_bound(module, weights, spec.bound, checkpoint)
        module.load_state_dict(weights)
        return cls(spec, module.eval(), view)

    @torch.no_grad()
    def __call__(self, batch: Any) -> Tensor:
        """Forecast of a batch, normalised."""
        return self.spec.predict(self.module, batch)


@dataclass(frozen=True)
class Series:
    """Consecutive forecasts of one period put together: what the figures show."""

    time_T: Floats
    """Days."""
    truth_TNV: Floats
    prediction_TNV: Floats
    persistence_TNV: Floats


def forecast_windows(
    model: TrainedModel, split: Split, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Any], Series]:
    """Forecast every window of a split from true states.

    Returns
    -------
    metrics : dict
        `FieldMetrics.result` over all windows and core nodes, in physical units.
    series : Series
        Forecasts of the windows that follow each other without overlap.
    """
    view, config = model.view, model.view.config
    starts = view.starts(split)
    metrics = FieldMetrics(config.variables, config.output_steps)
    tiled = np.flatnonzero((starts - starts[0]) % config.output_steps == 0)
    slot = {int(window): position for position, window in enumerate(tiled)}
    n_nodes = sum(len(nodes) for nodes in view.core_nodes)
    shape = (len(tiled), config.output_steps, n_nodes, len(config.variables))
    fields = [np.full(shape, np.nan) for _ in range(3)]
    n_batches = -(-len(starts) // _BATCH)
    for patch, core in enumerate(view.core_nodes):
        for b in range(n_batches):
            windows = np.arange(b * _BATCH, min((b + 1) * _BATCH, len(starts)))
            batch = view.batch(split, patch, windows)
            last_KBTV = batch.last_KBV.unsqueeze(2).expand_as(batch.y_KBTV)
            arrays = [
                view.to_physical(values).swapaxes(0, 1)  # [W, K, T, V]
                for values in (batch.y_KBTV, model(batch), last_KBTV)
            ]
            metrics.update(*arrays)
            for i, window in enumerate(windows):
                if int(window) in slot:
                    for field, values in zip(fields, arrays, strict=True):
                        field[slot[int(window)]][:, core] = values[i].swapaxes(0, 1)
            if progress is not None:
                progress(patch * n_batches + b + 1, len(view.core_nodes) * n_batches)
    steps = starts[tiled, None] + config.input_steps + np.arange(config.output_steps)
    flat = [field.reshape(-1, *field.shape[2:]) for field in fields]
    return metrics.result(), Series(view.time[steps.ravel()], *flat)


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
    view, config = model.view, model.view.config
    out, past = config.output_steps, config.input_steps
    windows = view.starts(split)
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
            view.to_physical(values).swapaxes(0, 1)
            for values in (truth_NWTV[:, :, past:], state_NWTV[:, :, past:], last_NWTV)
        )
    )
    steps = starts[:, None] + past + np.arange(rounds * out)
    lead_days = (view.time[steps] - view.time[starts + past - 1][:, None]).mean(axis=0)
    return {"lead_days": lead_days.tolist(), "starts": len(starts), "variables": metrics.result()}


def _true_states(model: TrainedModel, starts: np.ndarray, length: int) -> Tensor:
    view = model.view
    steps = starts[:, None] + np.arange(length)
    n_nodes = sum(len(nodes) for nodes in view.core_nodes)
    states = torch.empty(n_nodes, *steps.shape, len(view.config.variables), device=view.device)
    for patch, core in enumerate(view.core_nodes):
        states[torch.from_numpy(core)] = view.core_states(patch, steps)
    return states


def _next_states(model: TrainedModel, state_NWTV: Tensor, starts: np.ndarray, step: int) -> Tensor:
    view, config = model.view, model.view.config
    past_NWTV = state_NWTV[:, :, -config.input_steps :]
    size = (*state_NWTV.shape[:2], config.output_steps, state_NWTV.shape[3])
    result = torch.empty(size, device=state_NWTV.device)
    for patch, (core, ghost) in enumerate(zip(view.core_nodes, view.ghost_nodes, strict=True)):
        nodes = torch.from_numpy(np.concatenate([core, ghost]))
        batch = view.at_times(patch, starts + step * config.output_steps)
        result[nodes[: len(core)]] = model(view.with_states(batch, past_NWTV[nodes]))
    return result
