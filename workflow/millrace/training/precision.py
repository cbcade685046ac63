"""Layers in half precision: autocast, and the scale that keeps float16 gradients from vanishing."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FIRST_SCALE, GROW_AFTER = 2.0**16, 2000


def half_type(name: str) -> torch.dtype | None:
    """Type named ``bfloat16`` or ``float16``; None for other names, which mean that of the weights."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)


def autocast(precision: str, device: torch.device, cache: bool = True) -> torch.autocast:
    """Context of a forward pass in ``float32``, ``bfloat16`` or ``float16``.

    With ``cache``, weights are rounded once in the context, otherwise at each use.
    """
    dtype = half_type(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=cache)


class LossScaler:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740).

    The loss is multiplied by ``scale`` and the gradients are divided by it. A step whose gradient
    overflows is skipped and halves the scale; `GROW_AFTER` good steps double it. The rule is that of
    `torch.amp.GradScaler`, which refuses complex gradients, as models of others have. In other precisions
    the scale is 1 and no step is skipped.
    """

    def __init__(self, precision: str) -> None:
        self._enabled = precision == "float16"
        self.scale = FIRST_SCALE if self._enabled else 1.0
        self._good_steps = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether the scale is too small to be the cause of an overflow."""
        return self.scale <= 1.0

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients by the scale."""
        if self._enabled:
            torch._foreach_div_(gradients, self.scale)

    def accepts(self, norm: Tensor) -> bool:
        """Whether to take the step, given the norm of its gradient; adjusts the scale.

        All ranks decide alike, because the norm is that of the averaged gradient. Only float16 waits for
        the device here.
        """
        if not self._enabled:
            return True
        if not bool(torch.isfinite(norm)):
            self.scale, self._good_steps = max(1.0, self.scale / 2), 0
            return False
        self._good_steps += 1
        if self._good_steps == GROW_AFTER:
            self.scale, self._good_steps = self.scale * 2, 0
        return True

    def state(self) -> dict[str, Any]:
        """Plain values to continue from."""
        return {"scale": self.scale, "good_steps": self._good_steps}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.scale, self._good_steps = state["scale"], state["good_steps"]
