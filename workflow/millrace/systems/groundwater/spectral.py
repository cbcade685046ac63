"""Fourier layers under autocast."""

from typing import Any

import torch
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor, nn


def spectral_in_float32(module: nn.Module) -> None:
    """Have the spectral layers of a module take half-precision input as float32.

    Their weights are complex, which autocast leaves alone, and a Fourier transform in half precision
    does not exist (bfloat16, or on the CPU) or needs powers of two (float16).
    """
    for layer in module.modules():
        if isinstance(layer, SpectralConv):
            layer.register_forward_pre_hook(_in_float32)


def _in_float32(layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    x: Tensor = arguments[0]
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, *arguments[1:])
