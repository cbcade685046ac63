"""Samples on their way from the memory of the host to a GPU, while that computes.

From pinned memory the GPU fetches them by itself, in a stream of its own: neither the thread that gathers
samples nor the step waits until the other has finished. What is computed later in the thread's stream waits
for the samples alone.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

PINNED_BYTES = 256 << 20
"""Size beyond which values are copied as they are: pinned memory is not given back, and a series that stays
on the GPU is copied once."""


def to_device(values: np.ndarray | Tensor, device: torch.device, dtype: Any = None) -> Tensor:
    """Values as a tensor on a device; ``dtype`` is that of NumPy of an array, None: its own.

    On the CPU nothing is copied that need not be. On a GPU the copy may still be under way, but not for
    what the current stream computes from now on.
    """
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values, dtype=dtype))
    if device.type != "cuda" or values.device.type != "cpu" or values.nbytes > PINNED_BYTES:
        return values.to(device)
    # The memory of `pinned` is used again after the copy alone: torch notes the stream that reads it.
    pinned = values.pin_memory()
    current, copies = torch.cuda.current_stream(device), stream_of_copies(device)
    with torch.cuda.stream(copies):
        copied = pinned.to(device, non_blocking=True)
    current.wait_stream(copies)
    # Its memory belongs to the stream of copies, which must not fill it while the other still reads it.
    copied.record_stream(current)
    return copied


@cache
def stream_of_copies(device: torch.device) -> torch.cuda.Stream:
    """The stream in which all samples are copied to a GPU."""
    return torch.cuda.Stream(device)
