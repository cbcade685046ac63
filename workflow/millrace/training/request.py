"""What the launcher asks of the workers: plain data, no imports that take seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LENGTHS = ("epochs", "milestone_every", "save_every", "save_steps", "save_minutes")
"""Keys of the section ``train`` that do not decide the weights: more epochs continue the same run."""
EXECUTION = (
    *("micro_batch", "compile", "activation_checkpointing"),
    *("local_copies", "profile", "log"),
)
"""Keys of the section ``train`` that do not decide the weights, but how they are computed:
`millrace.training.config.ExecutionConfig`."""


def decisive(train: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the section ``train`` that decide the weights: `millrace.training.config.TrainConfig`."""
    return {key: value for key, value in train.items() if key not in (*LENGTHS, *EXECUTION)}


@dataclass(frozen=True)
class Request:
    """Input of `millrace.launch.train`, passed on as a JSON file."""

    experiment: str
    layout: str
    """Layout as it stands in paths; for a race all layouts that take part, see `trained_on`."""
    seed: int
    target_epoch: int
    definition: dict[str, Any]
    """Sections ``data``, ``model`` and ``train`` of the experiment."""
    files: dict[str, str | list[str]]
    """Sample files by role; a list for several datasets."""
    runs: str
    """Directory of this experiment, layout and seed, with one store for each run hash."""
    checkpoint: str
    """Output: the checkpoint at the end of ``target_epoch``."""
    receipt: str
    """Output: what the checkpoint is and how it was made."""
    save_every: int = 1
    """Epochs between checkpoints in the store."""
    save_steps: int | None = None
    """Optimiser steps between further checkpoints within epochs."""
    save_minutes: float | None = None
    """Minutes between further checkpoints within epochs."""
    execution: dict[str, Any] = field(default_factory=dict)
    """Keys of the section ``train`` that do not decide the weights."""
    parallel: dict[str, Any] = field(default_factory=dict)
    """Section ``parallel``: how the processes of the layout are used."""
    previous: str | None = None
    """Checkpoint of the previous milestone, used if the store has been removed."""
    final_epoch: int | None = None
    """Last configured epoch, for progress displays."""
    plugins: list[str] = field(default_factory=list)
    """Files or modules with systems from outside, see `millrace.systems.registry.load_plugins`."""
    won_by: str | None = None
    """The layout that won the race and trains; None: there was no race."""

    @property
    def trained_on(self) -> str:
        """The layout that trains."""
        return self.won_by or self.layout

    @property
    def name(self) -> str:
        """Name of the run in messages."""
        return f"{self.experiment} {self.layout} seed {self.seed}"
