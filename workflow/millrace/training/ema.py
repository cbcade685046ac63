"""Exponential moving average of the weights: a smoother model for the memory of a second set of weights."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from millrace.models.stored import restored
from millrace.training.parallel.shards import local


class Ema:
    """Average of a module's parameters over the steps (Polyak & Juditsky 1992, exponential form).

    ``decay`` is the weight of the previous average, between 0 and 1. That of step n is at most (1 + n) /
    (10 + n), so that the random initial weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self._average = [p.clone() for p in self._own()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights after optimiser step ``step``."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._own(), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the module's weights by the average while the context is open."""
        own = [p.clone() for p in self._own()]
        torch._foreach_copy_(self._own(), self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._own(), own)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from the averaged weights of this process, by name."""
        weights = restored(self._module, weights)
        names = (name for name, _ in self._module.named_parameters())
        for average, name in zip(self._average, names, strict=True):
            average.copy_(local(weights[name]))

    @torch.no_grad()
    def _own(self) -> list[Tensor]:
        """What this process holds of the parameters."""
        return [local(p).detach() for p in self._module.parameters()]
