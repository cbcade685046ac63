"""A trained model as one module from physical tensors to physical tensors, which can be exported.

What a `Program` computes it computes with plain operations of PyTorch, so that what is exported of it runs
where this library is not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from millrace.errors import ConfigError

BATCH = "batch"
"""First axis of what there is one of for each sample."""
_LEAST_SPREAD = 0.02
"""Deviations from the mean that count, over the greatest value: below, float32 holds too few digits."""


class NotExportable(ConfigError):
    """Models of this kind cannot be exported as programs; the message says why."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that goes into a program or comes out of it."""

    name: str
    tensor: Tensor
    """An example; of what comes out what the checkpoint itself gives for the examples that go in."""
    axes: tuple[str, ...]
    units: str | Mapping[str, str]
    """One unit, or one for each name along the axis that `Program.labels` gives these names."""
    about: str

    def __post_init__(self) -> None:
        # Packages of AOTInductor read what they are given as it lay in the memory when they were made.
        object.__setattr__(self, "tensor", self.tensor.detach().contiguous())

    def outline(self, program: "Program") -> dict[str, Any]:
        """Plain values: name, axes, lengths (None where they are free), type, units and meaning."""
        sizes = zip(self.axes, self.tensor.shape, strict=True)
        return {
            "name": self.name,
            "axes": list(self.axes),
            "shape": [None if axis in program.free else size for axis, size in sizes],
            "dtype": str(self.tensor.dtype).removeprefix("torch."),
            "units": self.units if isinstance(self.units, str) else dict(self.units),
            "about": self.about,
        }


@dataclass(frozen=True, eq=False)
class Program:
    """A module that maps ``inputs``, in their order, to ``outputs``."""

    module: nn.Module
    """Its attribute ``net`` is the module of the checkpoint."""
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    own: Callable[[], Any]
    """What the checkpoint computes for the examples, from normalised to normalised values."""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names along axes."""
    free: Mapping[str, int] = field(default_factory=lambda: {BATCH: 1})
    """Axes of any length, and the least one."""
    notes: Sequence[str] = ()
    """What who runs it must know, in sentences."""
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    """What is written with the examples beside them, such as tables of all patches of a mesh."""
    package: "Program | None" = None
    """What AOTInductor compiles in its place, with fewer free axes; None: the same."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The examples that go in."""
        return tuple(value.tensor for value in self.inputs)

    def outline(self) -> dict[str, Any]:
        """Plain values, for the file beside the program."""
        return {
            "inputs": [value.outline(self) for value in self.inputs],
            "outputs": [value.outline(self) for value in self.outputs],
            "labels": {axis: list(names) for axis, names in self.labels.items()},
            "free_axes": dict(self.free),
            "notes": list(self.notes),
        }

    def difference(self, found: Sequence[Tensor], samples: int | None = None) -> float:
        """Greatest difference from ``outputs``, or from their first samples, over the spread of a variable.

        The spread is the greatest deviation from the mean of the variable, or 2 % of the greatest value if
        that is more. Infinite if there is anything else than the numbers that are expected.
        """
        worst = 0.0
        for value, given in zip(self.outputs, found, strict=True):
            expected = value.tensor[:samples] if value.axes[0] == BATCH else value.tensor
            if given.shape != expected.shape or not bool(torch.isfinite(given).all()):
                return float("inf")
            axis = None
            if not isinstance(value.units, str):
                axis = next(a for a in value.axes if [*self.labels.get(a, ())] == [*value.units])
            pairs = [(expected, given)]
            if axis is not None:
                place = value.axes.index(axis)
                pairs = list(zip(expected.unbind(place), given.unbind(place), strict=True))
            for one, other in pairs:
                one, other = one.double(), other.double().to(one.device)
                spread = torch.maximum(
                    (one - one.mean()).abs().max(), _LEAST_SPREAD * one.abs().max()
                )
                apart = float((one - other).abs().max())
                worst = max(worst, apart / float(spread) if float(spread) else float(apart > 0))
        return worst


class Scaling(nn.Module):
    """From physical values to those that a model was trained on, and back: (x - mean) / std.

    Parameters
    ----------
    mean, std : array
        Of the variables.
    inner : int
        Axes that come after that of the variables.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: ArrayLike, std: ArrayLike, inner: int = 0) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(values, dtype=torch.float64).reshape(-1, *[1] * inner)
            if len(tensor):
                self.register_buffer(name, tensor)
            else:  # of no forcings; `torch.export.save` fails on buffers without elements
                setattr(self, name, tensor)

    def normalised(self, x: Tensor) -> Tensor:
        """As models take it, float32; computed in double precision, as where samples are read."""
        return ((x.double() - self.mean) / self.std).float()

    def physical(self, x: Tensor) -> Tensor:
        """In physical units, float32."""
        return self.unrounded(x).float()

    def unrounded(self, x: Tensor) -> Tensor:
        """In physical units, float64."""
        return x.double() * self.std + self.mean
