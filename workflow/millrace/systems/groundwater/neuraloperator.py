"""Parts of `neuralop` of which the models are made.

The package also imports Weights & Biases, for a trainer that is not used here, and the optimisers of SciPy,
for two functions on decompositions of tensors that are not called: 1.0 s in each process.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


@contextmanager
def _replaced(name: str, stand_in: ModuleType | None) -> Iterator[None]:
    """Import others with another module in place of one that nobody has imported; None: not installed."""
    modules: dict[str, Any] = sys.modules
    if name in modules:
        yield
        return
    modules[name] = stand_in
    try:
        yield
    finally:
        del modules[name]


class _Later(ModuleType):
    """A module whose functions are imported when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: getattr(import_module(self.__name__), name)(
            *args, **options
        )


with _replaced("wandb", None), _replaced("scipy.optimize", _Later("scipy.optimize")):
    from neuralop.layers.channel_mlp import ChannelMLP, LinearChannelMLP
    from neuralop.layers.fno_block import FNOBlocks
    from neuralop.layers.gno_block import GNOBlock
    from neuralop.layers.spectral_convolution import SpectralConv
    from neuralop.models import GINO as LibraryGINO

__all__ = [
    "ChannelMLP",
    "FNOBlocks",
    "GNOBlock",
    "LibraryGINO",
    "LinearChannelMLP",
    "SpectralConv",
]
