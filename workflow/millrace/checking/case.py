"""A model in a small experiment, which contracts are held against."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from millrace.data.samples import Files, open_dataset
from millrace.systems.base import Block, SampleKind
from millrace.systems.registry import kind_of
from millrace.training.batches import GlobalBatch, rank_shares
from millrace.training.distributed import Ranks
from millrace.training.engine import Trainer
from millrace.training.segment import build_trainer

ALONE = Ranks(0, 1, torch.device("cpu"))
"""This process as the only rank."""


class ContractError(AssertionError):
    """A promise does not hold; the message is one sentence that says how."""


class NotTried(Exception):
    """A model is not held to a promise; the message says why."""


@dataclass(frozen=True)
class Case:
    """A model in a small experiment, with its samples."""

    definition: Mapping[str, Any]
    """Blocks ``data``, ``model`` and ``train``."""
    files: Mapping[str, str | list[str]]
    """Sample files by role."""
    directory: Path
    """For what contracts write."""
    plugins: Sequence[str] = ()
    """What ranks have to load, see `millrace.systems.registry.load_plugins`."""
    dataset: Block = dataclasses.field(default_factory=dict)
    """The dataset's block."""
    prepared: Callable[[Block], Files] | None = None
    """Dataset block -> sample files made anew of the same raw files; None: they cannot be."""

    @property
    def kind(self) -> SampleKind:
        """Kind of the samples."""
        return kind_of(self.definition["model"]["name"])

    def trainer(self, seed: int = 0, **train: Any) -> Trainer:
        """Start a training, with other keys of the block ``train`` if some are given."""
        blocks = {**self.definition, "train": {**self.definition["train"], **train}}
        return build_trainer(blocks, self.files, seed, ALONE)[0]

    def opened(self, files: Files | None = None) -> Any:
        """Open the samples, or others of the same kind."""
        data = self.definition["data"]
        return open_dataset(self.kind.name, files or self.files, data, ALONE.device)


def samples_of(trainer: Trainer, number: int | None = None) -> Any:
    """Batch of one group as the model gets it, if possible of several samples; or its first ones."""
    parts = [part for batch in trainer.batches(0) for part in batch.parts]
    group, index = next((part for part in parts if len(part[1]) > 1), parts[0])
    [share] = rank_shares(GlobalBatch(((group, index[:number]),)), 0, 1)
    return trainer.passes.samples("train", share, trainer.position.epoch)


def target(batch: Any) -> tuple[Tensor, str]:
    """Target of a batch and the letters of its axes: the field ``y_KBTV``, or with others ``y_<axes>``."""
    names = [name for name in dir(batch) if name.startswith("y_") and "B" in name]
    names = ["y_KBTV"] if "y_KBTV" in names else names
    values = [getattr(batch, name) for name in names]
    if len(values) != 1 or values[0].ndim != len(names[0]) - 2:
        raise ContractError(
            f"{type(batch).__name__}: expected the target as one tensor y_<axes>, whose name has a letter "
            f"for each axis and B for that of the samples, such as y_BVHW; found {names or 'none'}"
        )
    return values[0], names[0][2:]


def advance(trainer: Trainer, steps: int) -> Iterator[tuple[GlobalBatch, Tensor]]:
    """Train until ``steps`` are done; yields each batch and this rank's part of its loss."""
    trainer.module.train()
    while trainer.step < steps:
        position = trainer.position
        batches = trainer.batches(position.epoch, position.batch)
        for batch in itertools.islice(batches, steps - trainer.step):
            loss = trainer.train_step(batch)
            trainer.step += 1
            yield batch, loss


def require(holds: bool, otherwise: str) -> None:
    """Raise `ContractError` where a promise does not hold."""
    if not holds:
        raise ContractError(otherwise)


def is_finite(values: Tensor) -> bool:
    """Whether no value is infinite or NaN."""
    return bool(torch.isfinite(values).all())
