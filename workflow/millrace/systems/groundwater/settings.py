"""Blocks of the configuration that belong to groundwater, without torch."""

from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.config import COLUMN, UNIQUE, Count, Names, Seed, Settings, SomeNames, Text, option
from millrace.systems.settings import MissingConfig, Parts, SplitDatasetSettings

Point = tuple[float, float]
Column = Annotated[str, Field(pattern=COLUMN)]
"""A column of a table, which becomes the name of a folder."""
SomeColumns = Annotated[tuple[Column, ...], Field(min_length=1), *UNIQUE]


class AquiferConfig(Settings):
    """A simulated coastal aquifer with tides, storms and seasons.

    The time between two outputs is 0.476 d on average. The direct solver takes about 7 ms per step at the
    default size, and grows with the number of nodes faster than linearly.
    """

    slices: int = option(8, ge=2, le=40)
    """Layers of nodes from the water table to the base, at most one per m of thickness."""
    nodes_per_slice: int = option(225, ge=40, le=5_000)
    """Nodes of a layer."""
    steps: int = option(400, ge=1, le=100_000)
    """Output times."""
    seed: Seed = 0
    """Of mesh, conductivity and storms: another aquifer of the same kind."""
    thickness: float = option(24.0, ge=6, le=34, unit="m")
    """Thickness of the aquifer."""
    conductivity: float = option(200.0, ge=1, le=500, unit="m/d")
    """Geometric mean of the horizontal hydraulic conductivity."""
    season: float = option(30.0, ge=5, le=365, unit="d")
    """Period of recharge and inland head."""
    spin_up: float = option(60.0, ge=0, le=3_650, unit="d")
    """Simulated before the first output."""

    def model_post_init(self, _: Any) -> None:
        """Check that layers are thick enough."""
        if self.thickness < self.slices - 1:
            # Density follows the flow by one step, which thinner layers would not bear.
            raise ValueError(
                f"slices: expected at most {int(self.thickness) + 1} for a thickness of "
                f"{self.thickness} m (1 m per layer), got {self.slices}; take fewer slices or a thicker "
                "aquifer"
            )


class PatchConfig(Settings):
    """How the aquifer is cut into patches of neighbouring nodes, for GINO."""

    slice_groups: Count = 4
    """Groups of neighbouring slices, at most as many as slices."""
    clusters: Count = 5
    """Patches of each group; some thousand nodes a patch are usual, more patches need less memory each."""
    ghost_neighbours: Count = 10
    """Nearest neighbours of a node that are looked at for ghost nodes."""
    ghost_fraction: float = option(0.05, ge=0, le=1)
    """Most ghosts from one neighbouring patch, as a share of the core; larger if errors gather on edges."""
    seed: Seed = 42
    """Of the clustering (k-means)."""


class PlaneConfig(Settings):
    """Where vertical sections run, for GFNO.

    Fields are interpolated between the nodes, in plan view and between the slices; cells outside the
    aquifer are left out of loss and scores.
    """

    transects: tuple[tuple[Point, Point], ...] = option(
        (), unit="m", examples=[[[[0.0, 0.0], [100.0, 50.0]]]]
    )
    """End points [[X, Y], [X, Y]] of each section, in the coordinates of the raw files."""
    count: Count = 8
    """Without `transects`: sections normal to the shore, evenly spread along the coast."""
    shape: tuple[Annotated[int, Field(ge=2)], Annotated[int, Field(ge=2)]] = (32, 32)
    """Cells along the section and in the vertical; finer for sharper fronts."""

    def model_post_init(self, _: Any) -> None:
        """Check that sections have a length."""
        for number, (start, end) in enumerate(self.transects):
            if start == end:
                raise ValueError(f"transects[{number}]: both ends are {list(start)}")


class PlaneFoldersDataset(SplitDatasetSettings):
    """Sections that were cut before, in folders plane_XX/ of arrays."""

    variables: Annotated[
        tuple[Literal["head", "mass_concentration"], ...], Field(min_length=1), *UNIQUE
    ]
    """What the folders hold: `head` (m), `mass_concentration` (mg/L) or both."""
    forcings: Names = ()
    """Boundary values to keep."""
    clip_negative_concentration: bool = False
    """Set negative concentrations, an artefact of the solver, to 0."""
    patches: PatchConfig = PatchConfig()
    """How the aquifer is cut for GINO."""
    planes: PlaneConfig = PlaneConfig()
    """Where vertical sections run for GFNO."""


class MaskedMissing(MissingConfig):
    """A number that stands for "no value" in the raw files; those that look like one are refused."""

    then: Literal["refuse", "mask", "keep"] = "refuse"  # type: ignore[assignment]
    """`refuse` it wherever it stands; `mask`: leave out nodes that have it at any time, and cells of
    sections beside them, without loss and score; or `keep` it as data."""


class FeflowDataset(SplitDatasetSettings):
    """CSV files of all nodes of a groundwater model."""

    variables: SomeColumns
    """Columns to keep: `head` (m), `mass_concentration` (mg/L), `pressure` (kPa), or any other with its
    unit under `units`; keep what any experiment will need."""
    units: dict[Text, Text] = option(default_factory=dict, examples=[{"temperature": "degC"}])
    """Units of other columns."""
    forcings: Names = ()
    """Columns of the forcing files to keep; in the demo `head_bc` (m), `mass_concentration_bc` (mg/L),
    `recharge_forcing` (m/d), `sea_level_forcing` (m)."""
    clip_negative_concentration: bool = False
    """Set negative concentrations, an artefact of the solver, to 0; how many is recorded in `series.h5`."""
    missing: MaskedMissing | None = None
    """What a no-data value such as -999 means; in forcings, `mask` takes it for a blank."""
    patches: PatchConfig = PatchConfig()
    """How the aquifer is cut for GINO."""
    planes: PlaneConfig = PlaneConfig()
    """Where vertical sections run for GFNO."""
    parts: Parts = None
    """Jobs that read the raw files; what they make does not depend on their number. null: one for every
    16 GiB of raw files."""


class WindowConfig(Settings):
    """Samples on patches: `input_steps` states, from which the `output_steps` that follow are predicted."""

    variables: SomeNames
    """Fields both given (past) and predicted (future), of those of the dataset."""
    input_steps: Count = option(unit="steps")
    """States given; more for a longer memory."""
    output_steps: Count = option(unit="steps")
    """States predicted at once."""
    forcings: Names = ()
    """Boundary conditions and sources given at the output times, each as value and mask; only what will be
    known when you forecast."""
    stride: Count = option(1, unit="steps")
    """Between the starts of two training windows; scores are over all windows."""

    @property
    def length(self) -> int:
        """Steps from the first input to the last output."""
        return self.input_steps + self.output_steps


class PlaneWindowConfig(Settings):
    """Samples on planes: `input_steps` states of one vertical section and the values on its boundary."""

    variables: SomeNames = ("head", "mass_concentration")
    """Fields both given (past) and predicted (future)."""
    input_steps: int = option(16, ge=2, le=10**9, unit="steps")
    """States given; more for a longer memory."""
    output_steps: int = option(16, ge=2, le=10**9, unit="steps")
    """States predicted at once, as many as `input_steps`: both lie on the same space-time grid."""
    stride: Count = option(8, unit="steps")
    """Between the starts of two training windows; scores are over all windows."""
    boundary: Literal["input", "output"] = "input"
    """Steps whose boundary values are given; `output` if they will be known when you forecast."""
    radius: float = option(0.15, gt=0, unit="unit cube")
    """Neighbourhood of the graph layer, in section, elevation and time scaled to 1; larger if few boundary
    points are near."""

    def model_post_init(self, _: Any) -> None:
        """Check that both halves of a window are equally long."""
        if self.output_steps != self.input_steps:
            raise ValueError(
                f"input_steps = {self.input_steps}, output_steps = {self.output_steps}: planes need the "
                "same number of both"
            )

    @property
    def length(self) -> int:
        """Steps from the first input to the last output."""
        return self.input_steps + self.output_steps


Triple = tuple[Count, Count, Count]


class GinoConfig(Settings):
    """GINO: graph layers between the nodes of a patch and a regular grid, Fourier layers on the grid.

    Lengths are in units of the box of a patch, which is mapped to a cube of edge 1.
    """

    latent_shape: Triple = (16, 16, 8)
    """Points of the regular grid along X, Y and Z; time and memory grow with their number. To be written
    out: it names the file of the neighbours."""
    radius: float = option(0.1, gt=0, unit="patch box")
    """Neighbourhood of both graph layers; every node needs a grid point that near. Smaller is faster. To be
    written out: it names the file of the neighbours."""
    modes: Triple = (8, 8, 8)
    """Fourier modes along each axis, at most the points of the grid; more for sharper fields."""
    hidden: Count = 64
    """Channels of the Fourier layers; larger if the training loss stays high."""
    layers: Count = 4
    """Fourier layers."""
    kernel_widths: tuple[Count, ...] = (32, 64, 32)
    """Hidden widths of the two kernel MLPs."""
    kernel_sums: Literal["bags", "triton"] = "bags"
    """How training on a GPU sums over neighbours: `triton` by kernels of our own, on GPUs that
    `make bench-gpu` says it is faster on. Elsewhere its checkpoints are evaluated with `bags`."""

    def model_post_init(self, _: Any) -> None:
        """Check that the grid bears the modes."""
        for modes, points in zip(self.modes, self.latent_shape, strict=True):
            if modes > points:
                raise ValueError(
                    f"modes {list(self.modes)}: at most the points of latent_shape "
                    f"{list(self.latent_shape)} along each axis"
                )


class GfnoConfig(Settings):
    """GFNO: a graph layer for boundary values, Fourier layers over time and section."""

    gno_channels: Count = 16
    """Channels of the boundary values in the graph layer."""
    kernel_widths: tuple[Count, ...] = (32, 64, 32)
    """Hidden widths of the kernel MLP."""
    modes: Triple = (6, 8, 8)
    """Fourier modes along time, section and elevation, at most steps and cells."""
    hidden: Count = 64
    """Channels of the Fourier layers; larger if the training loss stays high."""
    layers: Count = 4
    """Fourier layers."""
