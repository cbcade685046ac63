"""What the launcher asks of the workers: plain data, no imports that take seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# How long training runs does not decide the weights: more epochs continue the same run.
_LENGTHS = ("epochs", "milestone_every", "save_every")
EXECUTION = ("micro_batch", "compile", "activation_checkpointing", "profile", "log")
"""Keys of the block ``train`` that say how the weights are computed, and do not decide them:
`millrace.training.config.ExecutionConfig`."""


def decisive(train: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the block ``train`` that decide the weights: `millrace.training.config.TrainConfig`."""
    return {key: value for key, value in train.items() if key not in (*_LENGTHS, *EXECUTION)}


@dataclass(frozen=True)
class Request:
    """What `millrace.launch.train` is asked to do; travels as a JSON file."""

    experiment: str
    layout: str
    """As in the paths; of a race all layouts that take part, see `trained_on`."""
    seed: int
    target_epoch: int
    definition: dict[str, Any]
    """The experiment as configured: blocks ``data``, ``model``, ``train``."""
    files: dict[str, str | list[str]]
    """Sample files by role; a list for several datasets."""
    runs: str
    """Directory of this experiment, layout and seed; each run hash has its own store in it."""
    checkpoint: str
    """Output: the checkpoint at the end of ``target_epoch``."""
    receipt: str
    """Output: what the checkpoint is and how it was made."""
    save_every: int = 1
    """Epochs between checkpoints in the store: what a kill can cost."""
    execution: dict[str, Any] = field(default_factory=dict)
    """Keys of the block ``train`` that do not decide the weights."""
    parallel: dict[str, Any] = field(default_factory=dict)
    """The block of that name: how the processes of the layout are used."""
    previous: str | None = None
    """Checkpoint of the milestone before, for when the store has been removed."""
    final_epoch: int | None = None
    """Last epoch that is configured, for those who watch."""
    plugins: list[str] = field(default_factory=list)
    """Files or modules with systems from outside, for `millrace.systems.registry.load_plugins`."""
    won_by: str | None = None
    """The layout that trains, if several were in a race."""

    @property
    def trained_on(self) -> str:
        """The layout that trains."""
        return self.won_by or self.layout

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.experiment} {self.layout} seed {self.seed}"
