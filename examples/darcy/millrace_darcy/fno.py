"""Fourier neural operator (Li et al. 2021, arXiv:2010.08895), as `neuralop` has it."""

from dataclasses import dataclass

from neuralop.models import FNO

from millrace.data.arrays import ArrayDataset
from millrace.errors import ConfigError
from millrace.models.arrays import array_model


@dataclass(frozen=True)
class FnoConfig:
    """Parameters of the model; the section ``model`` of an experiment."""

    modes: tuple[int, int] = (12, 12)
    """Fourier modes along each axis of the grid."""
    hidden: int = 24
    """Channels of the Fourier layers."""
    layers: int = 4

    def __post_init__(self) -> None:
        if min(*self.modes, self.hidden, self.layers) < 1:
            raise ConfigError("model: expected modes, hidden and layers of 1 or more")


def build(config: FnoConfig, dataset: ArrayDataset) -> FNO:
    """Make an FNO for the fields of a dataset, on one device and without any distributed code."""
    return FNO(
        n_modes=config.modes,
        in_channels=dataset.in_channels,
        out_channels=dataset.out_channels,
        hidden_channels=config.hidden,
        n_layers=config.layers,
    )


SPEC = array_model("fno", FnoConfig, build, recomputed=["fno_blocks"])
