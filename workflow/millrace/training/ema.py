"""Exponential moving average of the weights: a smoother model at the price of a copy."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Average of a module's parameters over the steps (Polyak & Juditsky 1992, exponential form).

    The decay of step n is at most (1 + n) / (10 + n), so that the random initial weights are soon
    forgotten.

    Parameters
    ----------
    module : nn.Module
    decay : float
        Weight of the average so far, between 0 and 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self._average = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step ``step``."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, list(self._module.parameters()), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averaged weights for a while."""
        own = [p.detach().clone() for p in self._module.parameters()]
        self._fill(self._average)
        try:
            yield
        finally:
            self._fill(own)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from the averaged weights by name."""
        for (name, _), average in zip(self._module.named_parameters(), self._average, strict=True):
            average.copy_(weights[name])

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(list(self._module.parameters()), values)
