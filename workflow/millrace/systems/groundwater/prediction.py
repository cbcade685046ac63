"""Forecasts over all windows of a series, a few at a time: what the rule ``predict`` writes.

Shape suffixes: W windows, K core points of a patch, N points, L lead steps, V variables.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from millrace.evaluation.application import SeriesForecasts, window_starts
from millrace.evaluation.selection import Period
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.base import Progress
from millrace.systems.groundwater.forecast import next_states, physical, true_states
from millrace.systems.groundwater.patch_dataset import PatchDataset
from millrace.systems.groundwater.scores import FieldMetrics

Floats = NDArray[np.float64]

_BATCH = 16


class Prediction:
    """Forecasts of a model from the true states of a whole series.

    A model that is given no forcings also forecasts the states after the last one, for which there is
    no truth yet; one that is given forcings stops where these end.

    Parameters
    ----------
    model : TrainedModel
    options : SeriesForecasts
        From which states to forecast.
    period : Period
        What its ``times`` mean.
    given : int, optional
        Times of the dataset whose states are known, the first ones, by default all. The others have
        forcings alone.

    Attributes
    ----------
    starts : ndarray
        int64[W], time index of the first given state of each window.
    n_true : int
        Windows whose ground truth is known: the first ones.
    issue_time_W, time_WL : ndarray
        Time (d) of the last given state, and of what is predicted. Beyond the series times go on in
        steps of the median length.
    metrics : FieldMetrics
        Complete once `batches` has ended.
    rmse_WV, persistence_rmse_WV : ndarray
        Root-mean-square error of each window over points and leads; NaN without truth.
    """

    def __init__(
        self,
        model: TrainedModel,
        options: SeriesForecasts,
        period: Period,
        given: int | None = None,
    ) -> None:
        dataset, config = model.dataset, model.dataset.config
        n_steps = len(dataset.time)
        needs_forcings = not isinstance(dataset, PatchDataset) or bool(config.forcings)
        ahead = dataset.time[-1] + np.median(np.diff(dataset.time)) * np.arange(1, config.length)
        time = np.concatenate([dataset.time, ahead])
        starts, self.n_true = window_starts(
            n_steps if given is None else given,
            time[: n_steps if needs_forcings else n_steps + config.output_steps],
            (config.input_steps, config.output_steps),
            options,
            period,
        )
        self.starts, self._model = starts, model
        self.n_points = sum(map(len, dataset.core_nodes))
        self.shape = (len(starts), config.output_steps, self.n_points, len(config.variables))
        self.issue_time_W = time[starts + config.input_steps - 1]
        self.time_WL = time[starts[:, None] + config.input_steps + np.arange(config.output_steps)]
        self.metrics = FieldMetrics(config.variables, config.output_steps)
        self.rmse_WV = np.full((len(starts), len(config.variables)), np.nan)
        self.persistence_rmse_WV = self.rmse_WV.copy()

    @property
    def units(self) -> dict[str, str]:
        """Units of the V variables, in their order."""
        dataset = self._model.dataset
        return {name: dataset.units[name] for name in dataset.config.variables}

    def batches(
        self, progress: Progress | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32], list[Floats]]]:
        """Forecast; memory does not grow with the number of windows.

        Yields the number of the first window of a batch, its forecasts in physical units, float32[B, L, N,
        V], and ground truth and persistence where they are known.
        """
        for first in range(0, self.n_true, _BATCH):
            windows = slice(first, min(first + _BATCH, self.n_true))
            truth, last, forecast = self._forecast(self.starts[windows])
            self.metrics.update(*(x.swapaxes(1, 2) for x in (truth, forecast, last)))
            for rmse_WV, values in ((self.rmse_WV, forecast), (self.persistence_rmse_WV, last)):
                rmse_WV[windows] = np.sqrt(((values - truth) ** 2).mean(axis=(1, 2)))
            yield first, forecast.astype(np.float32), [truth, last]
            if progress is not None:
                progress(windows.stop, len(self.starts))
        # Windows of whose forecasts not all is known.
        for window, start in enumerate(self.starts[self.n_true :], start=self.n_true):
            within = start + self._model.dataset.config.length <= len(self._model.dataset.time)
            some = self.starts[window : window + 1]
            ahead = self._forecast(some)[2] if within else self._forecast_ahead(some)
            yield window, ahead.astype(np.float32), []
            if progress is not None:
                progress(window + 1, len(self.starts))

    def _forecast(self, starts: np.ndarray) -> list[Floats]:
        """Ground truth, persistence and forecast, each [B, L, N, V]."""
        dataset = self._model.dataset
        fields = [np.empty((len(starts), *self.shape[1:])) for _ in range(3)]
        for group, core in enumerate(dataset.core_nodes):
            batch = dataset.at_times(group, starts)
            parts = physical(dataset, batch, self._model(batch))
            for field, values in zip(fields, parts, strict=True):
                field[:, :, core] = values.swapaxes(1, 2)
        return fields

    def _forecast_ahead(self, starts: np.ndarray) -> Floats:
        """Forecast from a window of states that reaches beyond the series, [1, L, N, V]."""
        dataset, config = self._model.dataset, self._model.dataset.config
        states = true_states(self._model, starts, config.input_steps)
        # Without forcings a window differs from any other in its states alone.
        start = np.array([len(dataset.time) - config.length])
        forecast = next_states(self._model, states, start)
        return dataset.to_physical(forecast).transpose(1, 2, 0, 3)
