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
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from millrace.data.device import to_device
from millrace.data.hdf5 import open_checked
from millrace.data.recipe import Outline
from millrace.systems.groundwater.gno import NeighbourTable
from millrace.systems.groundwater.graph import radius_neighbours
from millrace.systems.groundwater.group_dataset import (
    GroupDataset,
    GroupSeries,
    WindowBatch,
    windows,
)
from millrace.systems.groundwater.planes import SCHEMA
from millrace.systems.groundwater.settings import PlaneWindowConfig


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
class PlaneBatch(WindowBatch):
    """Windows of one plane.

    Input channels are head and concentration on the boundary, then 1 for each that is given.
    """

    features_BFTHW: Tensor
    """Time, S, Z and X, Y in the unit cube, validity, and the past states (0 in masked cells)."""
    geometry: PlaneGeometry

    @property
    def past_NBTV(self) -> Tensor:
        """The past states of the valid cells among the features."""
        states_BVTG = self.features_BFTHW[:, -len(self.scale_V) :].flatten(3)
        return states_BVTG[..., self.geometry.cell_K].permute(3, 0, 2, 1)


class PlaneDataset(GroupDataset):
    """Windows of `planes.h5`; parameters and errors are those of `GroupDataset`."""

    config_type = PlaneWindowConfig
    roles = ("planes",)
    schema, forcing_keys, batch_type = SCHEMA, ("boundary", "bc"), PlaneBatch

    def _outline(self, file: h5py.File, config: PlaneWindowConfig) -> tuple[np.ndarray, dict]:
        groups = [file[name] for name in self._group_names]
        self._masks = [group["mask"][()].astype(bool) for group in groups]
        self.cell_coords = np.concatenate(
            [
                np.column_stack([_xy(group)[mask], group["coords"][()][mask, 1]])
                for group, mask in zip(groups, self._masks, strict=True)
            ]
        )
        bounds = np.cumsum([0, *(int(mask.sum()) for mask in self._masks)])
        self.core_nodes = [np.arange(*ends) for ends in itertools.pairwise(bounds)]
        """Valid cells of each plane, numbered over all planes as in ``cell_coords``, [N, 3] (m)."""
        self.ghost_nodes = [np.empty(0, dtype=np.int64) for _ in groups]
        self.grid_shape = (config.input_steps, *self._masks[0].shape)
        ends = np.array([group["endpoints"][()] for group in groups])
        # Sections of other data run where these do, wherever its shore may seem to be.
        cut = {**json.loads(file.attrs["config"]), "transects": ends.tolist()}
        # Planes that were read as such were not cut from raw files.
        return ends.reshape(-1, 2), {"planes": cut if "shape" in cut else None}

    def recipe(self) -> dict[str, Outline]:
        """What is needed to make samples of named arrays, see `millrace.data.recipe`."""
        of_planes = [f"plane_*/{name}" for name in ("field", "bc", "bc_mask")]
        return {"planes": Outline(self._path, (*of_planes, "time"))}

    @property
    def plane_of_cell(self) -> np.ndarray:
        """Plane of each cell in ``cell_coords``, int64[N]."""
        return np.repeat(np.arange(len(self.core_nodes)), [*map(len, self.core_nodes)])

    @property
    def boundary_channels(self) -> int:
        """Channels of `PlaneBatch.x_NBC`."""
        return 2 * len(self.normalisation.forcings)

    @property
    def feature_channels(self) -> int:
        """Channels of `PlaneBatch.features_BFTHW`."""
        return 6 + len(self.config.variables)

    def _inputs(self, series: GroupSeries, starts: np.ndarray) -> tuple[dict[str, Any], Tensor]:
        steps = self.config.input_steps
        past_NBTV = windows(series.state_TVN, starts, steps)
        given = starts if self.config.boundary == "input" else starts + steps
        x_MBTC = windows(series.forcing_TFN, given, steps)
        constant_BFTHW = series.constant.expand(len(starts), *series.constant.shape)
        states_BVTHW = _on_grid(past_NBTV, series.geometry)
        inputs = {
            "x_NBC": x_MBTC.permute(2, 0, 1, 3).flatten(0, 1),
            "features_BFTHW": torch.cat([constant_BFTHW, states_BVTHW], dim=1),
        }
        return inputs, past_NBTV

    def with_states(self, batch: PlaneBatch, past_KBTV: Tensor) -> PlaneBatch:
        """Replace the past states of a batch, for forecasts that feed on their own output."""
        constant_BFTHW = batch.features_BFTHW[:, : -len(self.config.variables)]
        states_BVTHW = _on_grid(past_KBTV, batch.geometry)
        features = torch.cat([constant_BFTHW, states_BVTHW], dim=1)
        return replace(batch, features_BFTHW=features, last_KBV=past_KBTV[:, :, -1])

    def _replace_inputs(self, batch: PlaneBatch, row_R: Tensor, past_RKTV: Tensor) -> None:
        states_BVTG = batch.features_BFTHW[:, -len(self.config.variables) :].flatten(3)
        states_BVTG[row_R[:, None], :, :, batch.geometry.cell_K] = past_RKTV.swapaxes(2, 3)

    def _read(self, group: int) -> GroupSeries:
        mask = self._masks[group]
        with open_checked(self._path, SCHEMA) as file:
            plane = file[self._group_names[group]]
            coords_HW2 = plane["coords"][()]
            unit_G2 = _unit(coords_HW2, coords_HW2).reshape(-1, 2)
            place_G2 = self.normalisation.unit_coords(_xy(plane).reshape(-1, 2))
            constant_GF = self._over_time(np.column_stack([unit_G2, place_G2, mask.ravel()]))
            return self._normalised(
                group,
                plane["field"][()][:, mask][..., self._columns],
                plane["bc"][()],
                plane["bc_mask"][()],
                constant_GF.T.reshape(-1, *self.grid_shape),
                self._geometry(unit_G2, _unit(plane["bc_coords"][()], coords_HW2), mask),
            )

    def _over_time(self, values_PF: np.ndarray) -> np.ndarray:
        """Repeat what is constant at points over the steps of a window, after the time, [T * P, 1 + F]."""
        step_T = np.linspace(0, 1, self.config.input_steps)
        times = np.repeat(step_T, len(values_PF))
        return np.column_stack([times, np.tile(values_PF, (len(step_T), 1))])

    def _geometry(
        self, unit_G2: np.ndarray, unit_M2: np.ndarray, mask: np.ndarray
    ) -> PlaneGeometry:
        boundary_N3, latent_G3 = self._over_time(unit_M2), self._over_time(unit_G2)
        table = radius_neighbours(boundary_N3, latent_G3, self.config.radius)
        return PlaneGeometry(
            boundary_N3=self._tensor(boundary_N3),
            latent_G3=self._tensor(latent_G3),
            latent_shape=self.grid_shape,
            cell_K=to_device(np.flatnonzero(mask), self.device),
            into_latent=NeighbourTable.from_csr(table, len(boundary_N3)).to(self.device),
        )


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


def _xy(plane: h5py.Group) -> np.ndarray:
    """X, Y (m) of all cells, [H, W, 2]."""
    coords_HW2, ends = plane["coords"][()], plane["endpoints"][()]
    return ends[0] + coords_HW2[..., :1] / coords_HW2[..., 0].max() * (ends[1] - ends[0])
