"""What the launcher asks of the workers that measure: plain data, no imports that take seconds."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MeasureRequest:
    """What is measured; travels as a JSON file."""

    experiment: str
    layout: str
    mode: str
    """``strong``: the global batch of the experiment; ``weak``: that batch on every rank."""
    repeat: int
    definition: dict[str, Any]
    """The experiment as configured: blocks ``data``, ``model``, ``train``."""
    files: dict[str, str | list[str]]
    output: str
    """The record to write, see `millrace.scaling.records`."""
    steps: int = 30
    execution: dict[str, Any] = field(default_factory=dict)
    parallel: dict[str, Any] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    """As of `millrace.training.request.Request`."""
