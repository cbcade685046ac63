"""Settings of experiments on groundwater: their sections ``data`` and ``model``, without torch."""

from dataclasses import dataclass

from millrace.config import check_one_of
from millrace.errors import ConfigError

PERIODS = ("input", "output")


@dataclass(frozen=True)
class WindowConfig:
    """What a sample holds; the ``data:`` block of an experiment on patches."""

    variables: tuple[str, ...]
    """Fields that are both given (past) and predicted (future)."""
    input_steps: int
    output_steps: int
    forcings: tuple[str, ...] = ()
    """Boundary conditions and sources given at the *output* times, each with its mask."""
    stride: int = 1
    """Steps between the starts of consecutive training windows; scores are over all windows."""

    def __post_init__(self) -> None:
        if min(self.input_steps, self.output_steps, self.stride) < 1:
            raise ConfigError("data: expected input_steps, output_steps and a stride of 1 or more")

    @property
    def length(self) -> int:
        """Steps from the first input to the last output."""
        return self.input_steps + self.output_steps


@dataclass(frozen=True)
class PlaneWindowConfig:
    """What a sample holds; the ``data:`` block of an experiment on planes."""

    variables: tuple[str, ...] = ("head", "mass_concentration")
    """Fields that are both given (past) and predicted (future)."""
    input_steps: int = 16
    output_steps: int = 16
    """As many as ``input_steps``: both lie on the same space-time grid."""
    stride: int = 8
    """Steps between the starts of consecutive training windows; scores are over all windows."""
    boundary: str = "input"
    """Steps whose boundary values are given: ``input``, or ``output`` for a scenario that is known."""
    radius: float = 0.15
    """Neighbourhood of the graph layer, in the unit cube of S, Z and time."""

    def __post_init__(self) -> None:
        if self.input_steps < 2 or self.output_steps != self.input_steps:
            raise ConfigError(
                f"data.input_steps = {self.input_steps}, data.output_steps = {self.output_steps}: planes "
                "need the same number of both, 2 or more"
            )
        check_one_of("data.boundary", self.boundary, PERIODS)
        if self.stride < 1 or not self.radius > 0 or not self.variables:
            raise ConfigError("data: expected at least one variable, a stride and a radius above 0")

    @property
    def length(self) -> int:
        """Steps from the first input to the last output."""
        return self.input_steps + self.output_steps


@dataclass(frozen=True)
class GinoConfig:
    """Parameters of GINO, see config/README.md for what each does."""

    latent_shape: tuple[int, int, int] = (16, 16, 8)
    radius: float = 0.1
    """Neighbourhood of both graph layers, in units of the patch box."""
    modes: tuple[int, int, int] = (8, 8, 8)
    hidden: int = 64
    layers: int = 4
    kernel_widths: tuple[int, ...] = (32, 64, 32)
    """Hidden widths of the two kernel MLPs."""

    def __post_init__(self) -> None:
        for modes, points in zip(self.modes, self.latent_shape, strict=True):
            if modes > points:
                raise ConfigError(
                    f"model.modes {list(self.modes)}: at most the points of model.latent_shape "
                    f"{list(self.latent_shape)} along each axis"
                )


@dataclass(frozen=True)
class GfnoConfig:
    """Parameters of GFNO, see config/README.md for what each does."""

    gno_channels: int = 16
    """Channels of the boundary values in the graph layer."""
    kernel_widths: tuple[int, ...] = (32, 64, 32)
    """Hidden widths of the kernel MLP."""
    modes: tuple[int, int, int] = (6, 8, 8)
    """Fourier modes along time, S and Z."""
    hidden: int = 64
    layers: int = 4

    def __post_init__(self) -> None:
        sizes = (self.gno_channels, *self.kernel_widths, *self.modes, self.hidden, self.layers)
        if min(sizes) < 1:
            raise ConfigError("model: expected widths, modes and layers of 1 or more")
