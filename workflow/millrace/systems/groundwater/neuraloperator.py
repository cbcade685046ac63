"""Parts of `neuralop` of which the models are made.

The package also imports Weights & Biases, for a trainer that is not used here: 0.8 s in each process.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _as_if_not_installed(name: str) -> Iterator[None]:
    modules: dict[str, Any] = sys.modules
    before = modules.get(name)
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]
        if before is not None:
            modules[name] = before


with _as_if_not_installed("wandb"):
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
