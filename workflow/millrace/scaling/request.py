"""The request of a measurement: plain data without slow imports, for planning, launcher and workers."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MeasureRequest:
    """One run to measure; it is passed to the workers as a JSON file."""

    experiment: str
    layout: str
    mode: str
    """``strong``: the global batch of the experiment; ``weak``: that batch on every rank."""
    repeat: int
    definition: dict[str, Any]
    """The experiment as configured: sections ``data``, ``model`` and ``train``."""
    files: dict[str, str | list[str]]
    """Sample files by role; a list for several datasets."""
    output: str
    """Path of the record to write, see `millrace.scaling.records`."""
    steps: int = 30
    """Number of recorded steps."""
    execution: dict[str, Any] = field(default_factory=dict)
    """Keys of the section ``train`` that do not decide the weights."""
    parallel: dict[str, Any] = field(default_factory=dict)
    """Section ``parallel`` of the experiment."""
    plugins: list[str] = field(default_factory=list)
    """Systems from outside, see `millrace.systems.registry.load_plugins`."""
