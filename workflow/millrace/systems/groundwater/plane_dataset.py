"""Windows in time over vertical planes: the samples that GFNO trains on.

A sample is ``input_steps`` states of a plane and the same number of states that follow, with the boundary
values of one of the two periods. Everything is normalised with statistics of the training period.
Coordinates are those of the unit cube: S and Z of the plane, and time as the step within the window, which
takes the steps as equally long. They are nearly so (a tidal half-cycle each), and it makes neighbour
tables a constant of the plane.

Only valid cells are ever read: what a masked cell holds cannot reach a sample.

Shape suffixes: N boundary points x steps (step-major), M boundary points, H x W cells along S x Z, G cells
of the space-time grid (T, H, W), K valid cells, B samples, T time steps, V variables, C boundary
channels, F grid features.
"""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from millrace.data.hdf5 import open_checked
from millrace.data.normalisation import Normalisation
from millrace.data.window_dataset import CACHE_BYTES, WindowDataset
from millrace.errors import ConfigError
from millrace.systems.groundwater.gno import NeighbourTable
from millrace.systems.groundwater.graph import radius_neighbours
from millrace.systems.groundwater.planes import SCHEMA, plane_name, plane_names
from millrace.systems.groundwater.units import units_of
from millrace.systems.groundwater.variance import variance_weights, weighted

PERIODS = ("input", "output")


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
        if self.boundary not in PERIODS:
            raise ConfigError(
                f"data.boundary {self.boundary!r}: expected one of {', '.join(PERIODS)}"
            )
        if self.stride < 1 or not self.radius > 0 or not self.variables:
            raise ConfigError("data: expected at least one variable, a stride and a radius above 0")

    @property
    def length(self) -> int:
        """Steps from the first input to the last output."""
        return self.input_steps + self.output_steps


@dataclass(frozen=True, eq=False)
class PlaneGeometry:
    """What is constant for a plane: positions, valid cells and the neighbour table of GFNO."""

    boundary_N3: Tensor
    """Time, S, Z of the boundary points in the unit cube."""
    latent_G3: Tensor
    """Time, S, Z of the space-time grid in the unit cube, in 'ij' order."""
    latent_shape: tuple[int, ...]
    """T, H, W."""
    cell_K: Tensor
    """int64: valid cells among the H * W of a time step."""
    into_latent: NeighbourTable
    """Grid points among boundary points."""


@dataclass(frozen=True)
class PlaneBatch:
    """Windows of one plane, normalised."""

    x_NBC: Tensor
    """Boundary head and concentration, then 1 for each that is given."""
    features_BFTHW: Tensor
    """Time, S, Z and X, Y in the unit cube, validity, and the past states (0 in masked cells)."""
    last_KBV: Tensor
    """Last given state of the valid cells: the persistence forecast."""
    y_KBTV: Tensor
    """States to predict in the valid cells."""
    scale_V: Tensor
    """Typical one-step change of each variable."""
    variance_weight_KV: Tensor
    """Weights of the valid cells in the loss, see `millrace.systems.groundwater.variance`."""
    weight_B: Tensor
    """1 for a sample that counts, 0 for one that only keeps the ranks in step."""
    geometry: PlaneGeometry


@dataclass(frozen=True)
class _PlaneSeries:
    state_KTV: Tensor
    boundary_TMC: Tensor
    constant_FTHW: Tensor
    variance_weight_KV: Tensor
    geometry: PlaneGeometry


class PlaneDataset(WindowDataset):
    """Windows of `planes.h5`.

    Parameters
    ----------
    planes : Path
        File of the rule ``extract_planes``.
    config : PlaneWindowConfig
        What a sample holds.
    device : torch.device
        Where batches are made; planes stay there once read.
    cache_bytes : int
        Planes used least recently are dropped beyond this.
    statistics : Normalisation, optional
        Of the data that a model was trained on, to predict other data with it, see `PatchDataset`.

    Raises
    ------
    ConfigError
        A variable is not in the file, or a window is longer than the gap between the splits, which
        would let it straddle two of them.
    """

    config_type = PlaneWindowConfig
    roles = ("planes",)

    def __init__(
        self,
        planes: Path,
        config: PlaneWindowConfig,
        device: torch.device | None = None,
        cache_bytes: int = CACHE_BYTES,
        statistics: Normalisation | None = None,
    ) -> None:
        self._path = planes
        with open_checked(planes, SCHEMA) as file:
            present = list(file.attrs["variables"])
            for name in config.variables:
                if name not in present:
                    raise ConfigError(
                        f"data.variables: {planes} has no {name!r}; it has {', '.join(present)}"
                    )
            self._columns = [present.index(name) for name in config.variables]
            stats = {name: file["stats"][name][()] for name in file["stats"]}
            boundary = tuple(file.attrs["boundary"])
            time, split = file["time"][()], file["split"][()]
            self.digest, self.units = str(file.attrs["digest"]), units_of(file.attrs)
            groups = [file[name] for name in plane_names(file)]
            self._masks = [group["mask"][()].astype(bool) for group in groups]
            self.cell_coords = np.concatenate([_cell_coords(group) for group in groups])
            ends = [group["endpoints"][()] for group in groups]
            config_of_planes = json.loads(file.attrs["config"])
            clipped = bool(file.attrs.get("clip_negative_concentration"))
        # Sections of other data run where these do, wherever its shore may seem to be.
        cut = {**config_of_planes, "transects": np.array(ends).tolist()}
        self.preparation = {
            "planes": cut if "shape" in cut else None,
            "clip_negative_concentration": clipped,
            "units": self.units,
        }
        """How the planes were cut from raw files; None if they were read as such."""
        self.weighted_variable = weighted(config.variables)
        corners = np.concatenate(ends)
        normalisation = statistics or Normalisation(
            variables=config.variables,
            mean_V=stats["obs_mean"][self._columns],
            std_V=stats["obs_std"][self._columns],
            increment_std_V=stats["increment_std"][self._columns],
            forcings=boundary,
            forcing_mean_F=stats["bc_mean"],
            forcing_std_F=stats["bc_std"],
            low_D=corners.min(axis=0),
            high_D=corners.max(axis=0),
        )
        sizes = [int(mask.sum()) for mask in self._masks]
        bounds = np.cumsum([0, *sizes])
        self.core_nodes = [np.arange(*ends) for ends in itertools.pairwise(bounds)]
        """Valid cells of each plane, numbered over all planes as in ``cell_coords``, [N, 3] (m)."""
        self.ghost_nodes = [np.empty(0, dtype=np.int64) for _ in sizes]
        self.grid_shape = (config.input_steps, *self._masks[0].shape)
        is_foreign = statistics is not None
        super().__init__(
            planes, config, time, split, normalisation, is_foreign, device, cache_bytes
        )

    @property
    def boundary_channels(self) -> int:
        """Channels of `PlaneBatch.x_NBC`."""
        return 2 * len(self.normalisation.forcings)

    @property
    def feature_channels(self) -> int:
        """Channels of `PlaneBatch.features_BFTHW`."""
        return 6 + len(self.config.variables)

    def at_times(self, group: int, starts: np.ndarray) -> PlaneBatch:
        """Windows of a plane that begin at the given time indices, whatever their split."""
        plane, steps = self._series(group), self.config.input_steps
        starts_B = torch.from_numpy(np.asarray(starts)).to(self.device)
        steps_BT = starts_B[:, None] + torch.arange(self.config.length, device=self.device)
        past_BT, future_BT = steps_BT[:, :steps], steps_BT[:, steps:]
        given_BT = past_BT if self.config.boundary == "input" else future_BT
        x_BTMC = plane.boundary_TMC[given_BT]
        past_KBTV = plane.state_KTV[:, past_BT]
        return PlaneBatch(
            x_NBC=x_BTMC.permute(1, 2, 0, 3).flatten(0, 1),
            features_BFTHW=self._features(plane, past_KBTV),
            last_KBV=past_KBTV[:, :, -1],
            y_KBTV=plane.state_KTV[:, future_BT],
            scale_V=self._scale_V,
            variance_weight_KV=plane.variance_weight_KV,
            weight_B=torch.ones(len(starts), device=self.device),
            geometry=plane.geometry,
        )

    def with_states(self, batch: PlaneBatch, past_KBTV: Tensor) -> PlaneBatch:
        """Replace the past states of a batch, for forecasts that feed on their own output."""
        constant_BFTHW = batch.features_BFTHW[:, : -len(self.config.variables)]
        states = _on_grid(past_KBTV, batch.geometry)
        features = torch.cat([constant_BFTHW, states], dim=1)
        return replace(batch, features_BFTHW=features, last_KBV=past_KBTV[:, :, -1])

    def core_states(self, group: int, steps: np.ndarray) -> Tensor:
        """States of a plane's valid cells at time indices of any shape S, [K, *S, V]."""
        index = torch.from_numpy(np.asarray(steps)).to(self.device)
        return self._series(group).state_KTV[:, index]

    def _features(self, plane: _PlaneSeries, past_KBTV: Tensor) -> Tensor:
        states = _on_grid(past_KBTV, plane.geometry)
        constant = plane.constant_FTHW.expand(len(states), *plane.constant_FTHW.shape)
        return torch.cat([constant, states], dim=1)

    def _read(self, group: int) -> _PlaneSeries:
        mask = self._masks[group]
        with open_checked(self._path, SCHEMA) as file:
            plane = file[plane_name(group)]
            state_TKV = plane["field"][()][:, mask][..., self._columns]
            value_TMC = plane["bc"][()]
            given_TMC = plane["bc_mask"][()].astype(np.float32)
            coords_HW2, bc_coords_M2 = plane["coords"][()], plane["bc_coords"][()]
            ends = plane["endpoints"][()]
        state_TKV = (state_TKV - self.mean) / self.std
        stats = self.normalisation
        value_TMC = (value_TMC - stats.forcing_mean_F) / stats.forcing_std_F * given_TMC
        geometry = self._geometry(coords_HW2, bc_coords_M2, mask)
        state_KTV = self._tensor(state_TKV.swapaxes(0, 1))
        training_KTV = state_KTV[:, slice(*self._split[0])]
        return _PlaneSeries(
            state_KTV=state_KTV,
            boundary_TMC=self._tensor(np.concatenate([value_TMC, given_TMC], axis=2)),
            constant_FTHW=self._constant(coords_HW2, ends, mask),
            variance_weight_KV=variance_weights(training_KTV, self.config.variables),
            geometry=geometry,
        )

    def _geometry(
        self, coords_HW2: np.ndarray, bc_coords_M2: np.ndarray, mask: np.ndarray
    ) -> PlaneGeometry:
        step_T = np.linspace(0, 1, self.config.input_steps)
        unit_M2 = _unit(bc_coords_M2, coords_HW2)
        unit_G2 = _unit(coords_HW2, coords_HW2).reshape(-1, 2)
        boundary_N3, latent_G3 = (
            np.column_stack([np.repeat(step_T, len(unit)), np.tile(unit, (len(step_T), 1))])
            for unit in (unit_M2, unit_G2)
        )
        table = radius_neighbours(boundary_N3, latent_G3, self.config.radius)
        return PlaneGeometry(
            boundary_N3=self._tensor(boundary_N3),
            latent_G3=self._tensor(latent_G3),
            latent_shape=self.grid_shape,
            cell_K=torch.from_numpy(np.flatnonzero(mask)).to(self.device),
            into_latent=NeighbourTable.from_csr(table, len(boundary_N3)).to(self.device),
        )

    def _constant(self, coords_HW2: np.ndarray, ends: np.ndarray, mask: np.ndarray) -> Tensor:
        s_HW = coords_HW2[..., 0]
        share_HW1 = (s_HW / s_HW.max())[..., None]
        place_HW2 = self.normalisation.unit_coords(ends[0] + share_HW1 * (ends[1] - ends[0]))
        fixed_HWF = np.concatenate(
            [_unit(coords_HW2, coords_HW2), place_HW2, mask[..., None]], axis=2
        )
        shape = (*fixed_HWF.shape[2:], *self.grid_shape)
        fixed_FTHW = np.broadcast_to(fixed_HWF.transpose(2, 0, 1)[:, None], shape)
        step_1THW = np.broadcast_to(
            np.linspace(0, 1, self.grid_shape[0])[None, :, None, None], (1, *self.grid_shape)
        )
        return self._tensor(np.concatenate([step_1THW, fixed_FTHW]))


def _on_grid(state_KBTV: Tensor, geometry: PlaneGeometry) -> Tensor:
    """States on the whole grid, 0 in masked cells, [B, V, T, H, W]."""
    _, n_samples, _, n_variables = state_KBTV.shape
    steps, *cells = geometry.latent_shape
    grid = state_KBTV.new_zeros(n_samples, n_variables, steps, cells[0] * cells[1])
    grid[..., geometry.cell_K] = state_KBTV.permute(1, 3, 2, 0)
    return grid.unflatten(3, cells)


def _unit(coords: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Map S, Z to the unit square of a plane's cells."""
    low, high = box.reshape(-1, 2).min(axis=0), box.reshape(-1, 2).max(axis=0)
    return (coords - low) / np.maximum(high - low, 1e-12)


def _cell_coords(group: h5py.Group) -> np.ndarray:
    """X, Y, Z (m) of the valid cells."""
    coords_K2 = group["coords"][()][group["mask"][()].astype(bool)]
    ends, length = group["endpoints"][()], group["coords"][..., 0].max()
    xy_K2 = ends[0] + coords_K2[:, :1] / length * (ends[1] - ends[0])
    return np.column_stack([xy_K2, coords_K2[:, 1]])
