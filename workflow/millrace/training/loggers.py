"""Epochs in TensorBoard and Weights & Biases, besides ``metrics.jsonl``.

Neither package is required. W&B writes to the run's store and sends nothing, unless ``WANDB_MODE`` says
otherwise; its key comes only from the environment or its own files.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from millrace.errors import ConfigError


class Logger(Protocol):
    """Receives the records of epochs."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Report an epoch."""

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
    names: Sequence[str], directory: Path, run: str, epoch: int, config: Mapping[str, Any]
) -> list[Logger]:
    """Open the loggers ``tensorboard`` and ``wandb``, if named, of the run whose store is ``directory``.

    ``epoch`` is the number of epochs done; later ones, which a kill undid, are not shown twice. ``config``
    is the run's definition.
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
        wandb = importlib.import_module("wandb")  # optional, and therefore not declared
        os.environ.setdefault("WANDB_MODE", "offline")
        options = {"id": directory.name, "resume": "allow", "dir": str(directory)}
        self._run = wandb.init(project="millrace", name=run, config=dict(config), **options)

    def log(self, record: Mapping[str, Any]) -> None:
        self._run.log(_numbers(record), step=record["epoch"])

    def close(self) -> None:
        self._run.finish()


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, int | float)}
