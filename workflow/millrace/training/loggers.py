"""Epochs in TensorBoard and Weights & Biases, beside ``metrics.jsonl``.

Neither package is required. W&B writes to the run's store and sends nothing, unless ``WANDB_MODE`` says
otherwise; its key comes from the environment or its own files alone.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from millrace.errors import ConfigError

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Logger(Protocol):
    """Takes the records of epochs."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Report an epoch."""

    def close(self) -> None:
        """Write what is left."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise `ConfigError` if the package of a logger is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"train.log: {name} needs the package {_PACKAGES[name]}, which is not installed; "
                f"`pip install {_PACKAGES[name]}`, or take {name} out of the list"
            )


def open_loggers(
    names: Sequence[str], directory: Path, run: str, epoch: int, config: Mapping[str, Any]
) -> list[Logger]:
    """Open the loggers of a run.

    Parameters
    ----------
    names : sequence of str
        ``tensorboard``, ``wandb``.
    directory : Path
        The run's store.
    run : str
        Name of the run.
    epoch : int
        Epochs done; what a kill took back is not shown twice.
    config : mapping
        What decides the weights.
    """
    kinds: dict[str, Callable[..., Logger]] = {"tensorboard": _TensorBoard, "wandb": _WandB}
    return [kinds[name](directory, run, epoch, config) for name in names]


class _TensorBoard:
    def __init__(self, directory: Path, run: str, epoch: int, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(directory / "tensorboard", purge_step=epoch + 1)

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, directory: Path, run: str, epoch: int, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")  # optional, and not to be declared
        os.environ.setdefault("WANDB_MODE", "offline")
        self._run = wandb.init(
            project="millrace",
            name=run,
            id=directory.name,
            resume="allow",
            dir=str(directory),
            config=dict(config),
        )

    def log(self, record: Mapping[str, Any]) -> None:
        self._run.log(_numbers(record), step=record["epoch"])

    def close(self) -> None:
        self._run.finish()


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, int | float)}
