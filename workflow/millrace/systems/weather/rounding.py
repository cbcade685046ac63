"""States that take less space because bits that are mostly noise are rounded away (Klöwer et al. 2021).

Bits behind those that are kept become zeros, which packing takes out; the error is measured, not assumed.

Shape suffixes: S times at once, C channels, I latitudes, J longitudes.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MANTISSA = 23
"""Bits of the mantissa of float32."""


class Rounding:
    """Rounds states to some bits of their mantissa and remembers its largest errors."""

    def __init__(self, keep_bits: int, channels: int) -> None:
        self._keep_bits = keep_bits
        self._relative, self._absolute_C = 0.0, np.zeros(channels)

    def apply(self, block_SCIJ: NDArray[np.float32]) -> None:
        """Round states in place, to the nearest, halves to even."""
        drop = MANTISSA - self._keep_bits
        if not drop:
            return
        for state_CIJ in block_SCIJ:
            bits = state_CIJ.view(np.uint32)
            odd = (bits >> np.uint32(drop)) & np.uint32(1)
            rounded = (bits + odd + np.uint32((1 << (drop - 1)) - 1)) >> np.uint32(drop)
            rounded_CIJ = (rounded << np.uint32(drop)).view(np.float32)
            error_CIJ = np.abs(rounded_CIJ - state_CIJ)
            np.maximum(self._absolute_C, error_CIJ.max(axis=(1, 2)), out=self._absolute_C)
            size_CIJ = np.abs(state_CIJ)
            # Zero stays zero.
            relative = np.divide(error_CIJ, size_CIJ, where=size_CIJ > 0, out=error_CIJ)
            self._relative = max(self._relative, float(relative.max()))
            state_CIJ[:] = rounded_CIJ

    def to_json(self) -> str:
        """What was found, for `add`."""
        return json.dumps([self._relative, self._absolute_C.tolist()])

    def add(self, found: str) -> None:
        """Take what another one found into account."""
        relative, absolute = json.loads(found)
        self._relative = max(self._relative, relative)
        np.maximum(self._absolute_C, absolute, out=self._absolute_C)

    def summary(self, channels: Sequence[str], change_C: NDArray[np.float64]) -> dict[str, Any]:
        """Errors in words; ``change_C`` are the typical changes of the channels in one step."""
        # A channel that never changes has no typical change.
        share_C = np.divide(
            self._absolute_C, change_C, out=np.zeros_like(change_C), where=change_C > 0
        )
        worst = int(np.argmax(share_C))
        return {
            "bits kept of the mantissa": self._keep_bits,
            "largest relative error": float(f"{self._relative:.3g}"),
            "largest error over a typical change in a step": float(f"{share_C[worst]:.3g}"),
            "of channel": channels[worst],
        }
