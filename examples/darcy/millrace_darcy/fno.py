"""Fourier neural operator (Li et al. 2021, arXiv:2010.08895), as `neuralop` has it."""

from neuralop.models import FNO

from millrace.config import Count, Settings
from millrace.data.arrays import ArrayDataset
from millrace.models.arrays import array_model


class FnoConfig(Settings):
    """Parameters of the model; the block ``model`` of an experiment."""

    modes: tuple[Count, Count] = (12, 12)
    """Fourier modes along each axis of the grid."""
    hidden: Count = 24
    """Channels of the Fourier layers."""
    layers: Count = 4
    """Fourier layers."""


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
