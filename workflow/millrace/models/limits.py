"""How far a model can be divided, known without torch: planning asks for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from millrace.models.aurora.config import AuroraConfig


@dataclass(frozen=True)
class Limits:
    """What bounds the numbers of a block ``parallel``."""

    config: type
    """That of the model, `ModelSpec.config`."""
    heads: Callable[[Any], Sequence[int]]
    """config -> numbers of heads that tensor parallelism must divide."""
    stages: Callable[[Any], int]
    """config -> most stages a pipeline can have."""
    steps: Callable[[Mapping[str, Any]], int]
    """Block ``data`` of an experiment -> steps of a rollout."""


LIMITS: dict[str, Limits] = {
    "aurora": Limits(
        config=AuroraConfig,
        heads=lambda config: config.attention_heads,
        stages=lambda config: config.swin_blocks,
        steps=lambda data: data.get("output_steps", 1),
    ),
}
"""By the models' names; of models with a `millrace.models.spec.Division`."""
