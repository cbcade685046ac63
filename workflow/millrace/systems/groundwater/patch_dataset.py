"""Windows in time over groundwater patches, with neighbour tables for models that have a latent grid.

Shape suffixes: N points of the patch (core first, then ghost), K core points, G points of the latent grid,
B samples, T time steps, V variables, C input channels.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from millrace.data.hdf5 import open_checked
from millrace.data.recipe import Outline
from millrace.errors import ConfigError
from millrace.systems.groundwater.gno import NeighbourTable
from millrace.systems.groundwater.graph import CSR
from millrace.systems.groundwater.graphs import SCHEMA as GRAPH_SCHEMA
from millrace.systems.groundwater.graphs import unit_coords
from millrace.systems.groundwater.group_dataset import (
    GroupDataset,
    GroupSeries,
    WindowBatch,
    windows,
)
from millrace.systems.groundwater.patch_file import SCHEMA
from millrace.systems.groundwater.settings import WindowConfig


@dataclass(frozen=True, eq=False)
class PatchGeometry:
    """What is constant for a patch."""

    points_N3: Tensor
    """Coordinates of the patch's points in the unit cube to which its box is mapped."""
    n_core: int
    """Points that are predicted, K: the first ones."""


@dataclass(frozen=True, eq=False)
class LatentGeometry(PatchGeometry):
    """Geometry with a latent grid and the two neighbour tables of GINO."""

    latent_G3: Tensor
    """Unit-cube coordinates of the latent grid, in 'ij' order."""
    latent_shape: tuple[int, ...]
    into_latent: NeighbourTable
    """Latent points among patch points."""
    from_latent: NeighbourTable
    """Core points among latent points."""


@dataclass(frozen=True)
class PatchBatch(WindowBatch):
    """Windows of one patch.

    Input channels are past states (step-major), then forcings and their masks at output times, then the
    position in the unit cube of the whole aquifer.
    """

    geometry: PatchGeometry
    """A `LatentGeometry` for models that have a latent grid."""
    input_steps: int
    """Past states, T."""

    @property
    def past_NBTV(self) -> Tensor:
        """The past states among the input channels."""
        shape = self.input_steps, len(self.scale_V)
        return self.x_NBC[:, :, : shape[0] * shape[1]].unflatten(2, shape)


class PatchDataset(GroupDataset):
    """Windows of `patches.h5`, with the neighbour tables of `graph_*.h5` if that file is given.

    ``options`` are those of `GroupDataset`. Raises `ConfigError` like it, and if the graph was made from
    other patches.
    """

    config_type = WindowConfig
    roles = ("patches", "graph")
    schema, forcing_keys, batch_type = SCHEMA, ("forcings", "forcing"), PatchBatch

    def __init__(self, patches: Path, graph: Path | None = None, **options: Any) -> None:
        super().__init__(patches, **options)
        self._graph_path = graph
        if graph is None:
            return
        with open_checked(graph, GRAPH_SCHEMA) as file:
            if str(file.attrs["patches_digest"]) != self.digest:
                raise ConfigError(
                    f"{graph}: made from other patches than {patches}; delete it and run again"
                )
            self.digest += f"/{file.attrs['digest']}"

    def recipe(self) -> dict[str, Outline]:
        """What is needed to make samples of named arrays, see `millrace.data.recipe`.

        Meshes are left out: whoever applies the model gives one, which is cut as that of the training.
        """
        of_mesh = ("patch_*/*", "time", "node")
        made = {"patches": Outline(self._path, of_mesh, first=["patch_*"])}
        if self._graph_path is not None:
            made["graph"] = Outline(self._graph_path, ("patch_*/*",), first=["patch_*"])
        return made

    @property
    def in_channels(self) -> int:
        """Channels of `PatchBatch.x_NBC`."""
        steps, config = self.config.input_steps, self.config
        return steps * len(config.variables) + 2 * len(config.forcings) * config.output_steps + 3

    def _outline(self, file: h5py.File, config: WindowConfig) -> tuple[np.ndarray, dict[str, Any]]:
        groups = [file[name] for name in self._group_names]
        self.core_nodes = [group["core_node"][()] for group in groups]
        self.ghost_nodes = [group["ghost_node"][()] for group in groups]
        cut = {"patches": json.loads(file.attrs.get("config", "{}"))}
        return np.concatenate([group["coords"][()] for group in groups]), cut

    def _inputs(self, series: GroupSeries, starts: np.ndarray) -> tuple[dict[str, Any], Tensor]:
        steps, config = self.config.input_steps, self.config
        n_state, (n_place, n_points) = steps * len(config.variables), series.constant.shape
        x_BCN = series.constant.new_empty(len(starts), self.in_channels, n_points)
        state, forcing, place = x_BCN.tensor_split([n_state, self.in_channels - n_place], dim=1)
        past_NBTV = windows(series.state_TVN, starts, steps, state)
        if config.forcings:
            windows(series.forcing_TFN, starts + steps, config.output_steps, forcing)
        place.copy_(series.constant)
        return {"x_NBC": x_BCN.permute(2, 0, 1), "input_steps": steps}, past_NBTV

    def with_states(self, batch: PatchBatch, past_NBTV: Tensor) -> PatchBatch:
        """Replace the past states of a batch, for forecasts that feed on their own output."""
        last_KBV = past_NBTV[: batch.geometry.n_core, :, -1]
        batch = replace(batch, x_NBC=batch.x_NBC.clone(), last_KBV=last_KBV)
        batch.past_NBTV.copy_(past_NBTV)
        return batch

    def _replace_inputs(self, batch: PatchBatch, row_R: Tensor, past_RKTV: Tensor) -> None:
        batch.past_NBTV[: past_RKTV.shape[1], row_R] = past_RKTV.swapaxes(0, 1)

    def _read(self, group: int) -> GroupSeries:
        name = self._group_names[group]
        with open_checked(self._path, SCHEMA) as file:
            patch = file[name]
            coords_N3 = patch["coords"][()]
            return self._normalised(
                group,
                patch["obs"][()][..., self._columns],
                patch["forcing"][()][..., self._forcing_columns],
                patch["forcing_mask"][()][..., self._forcing_columns],
                self.normalisation.unit_coords(coords_N3).T,
                self._geometry(name, unit_coords(coords_N3), len(self.core_nodes[group])),
            )

    def _geometry(self, name: str, unit_N3: np.ndarray, n_core: int) -> PatchGeometry:
        points_N3 = self._tensor(unit_N3)
        if self._graph_path is None:
            return PatchGeometry(points_N3, n_core)
        with open_checked(self._graph_path, GRAPH_SCHEMA) as file:
            latent_G3 = self._tensor(file["latent"][()])
            into, out = (
                CSR(file[name][side]["indptr"][()], file[name][side]["index"][()])
                for side in ("in", "out")
            )
            return LatentGeometry(
                points_N3,
                n_core,
                latent_G3,
                latent_shape=tuple(int(n) for n in file.attrs["latent_shape"]),
                into_latent=NeighbourTable.from_csr(into, len(points_N3)).to(self.device),
                from_latent=NeighbourTable.from_csr(out, len(latent_G3)).to(self.device),
            )
