"""Epochs, and steps, in TensorBoard, Weights & Biases and MLflow, besides ``metrics.jsonl``.

None of the packages is required. W&B and MLflow write to the run's store and send nothing, unless
``WANDB_MODE`` or ``MLFLOW_TRACKING_URI`` say otherwise; keys come only from the environment or their own
files.
"""

import importlib
import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from millrace.errors import ConfigError, first_line
from millrace.training.store import Position

EXPERIMENT = "millrace"
"""Project of W&B, and experiment of MLflow unless ``MLFLOW_EXPERIMENT_NAME`` names another."""


class Logger(Protocol):
    """Receives the records of epochs, and of some steps."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Report an epoch."""

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Report an optimiser step."""

    def close(self) -> None:
        """Write what is left."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise `ConfigError` if the package of a logger, which has its name, is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"train.log: {name} needs the package {name}, which is not installed; "
                f"`pip install {name}`, or take {name} out of the list"
            )


def open_loggers(
    names: Sequence[str],
    directory: Path,
    run: str,
    done: Position,
    config: Mapping[str, Any],
    every: int | None = None,
) -> list[Logger]:
    """Open the loggers ``tensorboard``, ``wandb`` and ``mlflow``, if named, of a run.

    ``directory`` is the run's store, ``config`` its definition. What comes after ``done`` and was reported
    before a kill undid it is not shown twice. ``every`` says that steps are reported, too.
    """
    kinds: dict[str, Callable[..., Logger]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WandB,
        "mlflow": _MLflow,
    }
    return [kinds[name](directory, run, done, config, every) for name in names]


class StepReports:
    """Reports every so many steps what ``measure`` gives; those done before, or undone, not again."""

    def __init__(
        self,
        loggers: Sequence[Logger],
        every: int | None,
        done: Position,
        measure: Callable[[], Mapping[str, float]],
    ) -> None:
        self._loggers, self._every, self._measure = loggers, every, measure
        self._reported = done.step

    def on_step(self, step: int) -> None:
        """After a step, with the number of steps done."""
        if self._every and self._loggers and step % self._every == 0 and step > self._reported:
            values, self._reported = self._measure(), step
            for logger in self._loggers:
                logger.log_step(step, {f"steps/{name}": value for name, value in values.items()})


class _TensorBoard:
    def __init__(
        self, directory: Path, _run: str, done: Position, _config: Any, every: int | None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = directory / "tensorboard"
        self._writers = [SummaryWriter(folder, purge_step=done.epoch + 1)]
        if every:  # apart: what is purged is told by one number for a whole file
            self._writers.append(SummaryWriter(folder / "steps", purge_step=done.step + 1))

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in _numbers(record).items():
            self._writers[0].add_scalar(name, value, record["epoch"])
        for writer in self._writers:
            writer.flush()

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[1].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class _WandB:
    def __init__(
        self, directory: Path, run: str, _done: Position, config: Any, every: int | None
    ) -> None:
        wandb = importlib.import_module("wandb")  # optional, and therefore not declared
        os.environ.setdefault("WANDB_MODE", "offline")
        options = {"id": directory.name, "resume": "allow", "dir": str(directory)}
        self._run = wandb.init(project=EXPERIMENT, name=run, config=dict(config), **options)
        # It has one axis, and drops what comes again on it.
        self._axis = "step" if every else "epoch"

    def log(self, record: Mapping[str, Any]) -> None:
        self._run.log(_numbers(record), step=record[self._axis])

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A server that cannot be reached does not stop the training: one line says so."""

    def __init__(
        self, directory: Path, run: str, _done: Position, config: Any, _every: int | None
    ) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        mlflow = importlib.import_module("mlflow")
        local = f"sqlite:///{directory.resolve() / 'mlflow.db'}"
        mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or local)
        # Without SQLAlchemy, which mlflow-skinny leaves out, there is no database.
        self._errors, self._is_lost = (mlflow.exceptions.MlflowException, ImportError), False
        self._attempt(lambda: self._open(mlflow, directory.name, run, config))

    def _open(self, mlflow: Any, store: str, run: str, config: Mapping[str, Any]) -> None:
        """Go on with the run of this store, or begin one."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        self._client = client = mlflow.MlflowClient()  # looks at the store already
        self._metric = mlflow.entities.Metric
        experiment = mlflow.set_experiment(name).experiment_id
        found = client.search_runs([experiment], f"tags.`{_STORE}` = '{store}'")
        if found:
            self._run = found[0].info.run_id
            client.update_run(self._run, status="RUNNING")
        else:
            made = client.create_run(experiment, tags={_STORE: store}, run_name=run)
            self._run = made.info.run_id
            # Names that MLflow takes as the same would be refused the second time.
            for key, value in {_allowed(key): value for key, value in _flat(config)}.items():
                client.log_param(self._run, key, value)
        # What comes again after a kill would be shown twice.
        self._last = {
            key: max((one.step for one in client.get_metric_history(self._run, key)), default=0)
            for key in _AXES
        }

    def log(self, record: Mapping[str, Any]) -> None:
        self._attempt(lambda: self._send("epoch", record["epoch"], _numbers(record)))

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        self._attempt(lambda: self._send("steps/loss", step, values))

    def close(self) -> None:
        self._attempt(lambda: self._client.set_terminated(self._run))

    def _send(self, axis: str, at: int, values: Mapping[str, float]) -> None:
        if at > self._last[axis]:
            now = int(time.time() * 1000)
            made = [(_allowed(name), float(value), now, at) for name, value in values.items()]
            self._client.log_batch(self._run, metrics=[self._metric(*one) for one in made])
            self._last[axis] = at

    def _attempt(self, call: Callable[[], None]) -> None:
        if self._is_lost:
            return
        try:
            call()
        except self._errors as error:
            self._is_lost = True
            print(
                f"warning: train.log: MLflow gets no more of this session ({first_line(error)}); "
                "metrics.jsonl has it all",
                file=sys.stderr,
            )


_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""By default MLflow tries for four minutes, while the GPUs wait, to reach a server that is not there."""
_STORE = "millrace.store"
_AXES = ("epoch", "steps/loss")
"""Metrics of MLflow that each epoch, and each step that is reported, has."""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _allowed(name: str) -> str:
    """A name as MLflow takes it; others, such as that of a column with a bracket, it refuses."""
    return re.sub(r"[^\w./: -]", "_", name, flags=re.ASCII)


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, int | float)}
