"""What the launcher asks of the workers: plain data, no imports that take seconds."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """What `millrace.train` is asked to do; travels as a JSON file."""

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
    """Directory of this experiment, layout and seed; each identity has its own store in it."""
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
