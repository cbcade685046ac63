"""Windows in time over groundwater patches, with neighbour tables for models that have a latent grid.

A sample is ``input_steps`` states of one patch and the ``output_steps`` states that follow. Windows
are slices of the series of `patches.h5`, never copies; all windows of a batch come from one patch and
share its geometry. Everything a batch holds is normalised with statistics of the training period.

Shape suffixes: N points of the patch (core first, then ghost), K core points, B samples, T time
steps, V variables, C input channels, W windows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from millrace.data.hdf5 import open_checked
from millrace.data.normalisation import Normalisation
from millrace.data.window_dataset import CACHE_BYTES, WindowDataset
from millrace.errors import ConfigError
from millrace.systems.groundwater.gno import NeighbourTable
from millrace.systems.groundwater.graph import CSR
from millrace.systems.groundwater.graphs import unit_coords
from millrace.systems.groundwater.units import units_of
from millrace.systems.groundwater.variance import variance_weights, weighted


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

    @property
    def length(self) -> int:
        """Steps from the first input to the last output."""
        return self.input_steps + self.output_steps


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
class PatchBatch:
    """Windows of one patch, normalised."""

    x_NBC: Tensor
    """Input channels: past states (step-major), then forcings and their masks at output times."""
    last_KBV: Tensor
    """Last given state of the core points: the persistence forecast."""
    y_KBTV: Tensor
    """States to predict on the core points."""
    scale_V: Tensor
    """Typical one-step change of each variable."""
    variance_weight_KV: Tensor
    """Weights of the core points in the loss, see `millrace.systems.groundwater.variance`."""
    weight_B: Tensor
    """1 for a sample that counts, 0 for one that only keeps the ranks in step."""
    geometry: PatchGeometry
    """A `LatentGeometry` for models that have a latent grid."""


@dataclass(frozen=True)
class _PatchSeries:
    state_NTV: Tensor
    forcing_NTF: Tensor
    """Values then masks, F = 2 x forcings."""
    position_N3: Tensor
    """Coordinates in the unit cube of the whole aquifer."""
    variance_weight_KV: Tensor
    geometry: PatchGeometry


class PatchDataset(WindowDataset):
    """Windows of `patches.h5`, with the neighbour tables of `graph_*.h5` if that file is given.

    Parameters
    ----------
    patches : Path
        File of the rule ``extract_patches``.
    graph : Path, optional
        File of the rule ``build_graph``, for models that have a latent grid.
    config : WindowConfig
        What a sample holds.
    device : torch.device
        Where batches are made; patches stay there once read.
    cache_bytes : int
        Patches used least recently are dropped beyond this.
    statistics : Normalisation, optional
        Of the data that a model was trained on, to predict other data with it; by default those of the
        training period in ``patches``. With it there is no training, and splits may be closer than a
        window is long.

    Raises
    ------
    ConfigError
        A variable or forcing is not in the file, or a window is longer than the gap between the
        splits, which would let it straddle two of them.
    """

    config_type = WindowConfig
    roles = ("patches", "graph")

    def __init__(
        self,
        patches: Path,
        graph: Path | None = None,
        *,
        config: WindowConfig,
        device: torch.device | None = None,
        cache_bytes: int = CACHE_BYTES,
        statistics: Normalisation | None = None,
    ) -> None:
        self._patches_path, self._graph_path = patches, graph
        with open_checked(patches, "millrace.patches/1") as file:
            variables, forcings = list(file.attrs["variables"]), list(file.attrs["forcings"])
            self._state_columns = _columns(config.variables, variables, "variables", patches)
            self._forcing_columns = _columns(config.forcings, forcings, "forcings", patches)
            stats = {name: file["stats"][name][()] for name in file["stats"]}
            time, split = file["time"][()], file["split"][()]
            self.core_nodes = [
                file[f"patch_{p:02d}"]["core_node"][()] for p in range(_count_patches(file))
            ]
            self.ghost_nodes = [
                file[f"patch_{p:02d}"]["ghost_node"][()] for p in range(len(self.core_nodes))
            ]
            boxes = [file[f"patch_{p:02d}"]["coords"][()] for p in range(len(self.core_nodes))]
            self.units = units_of(file.attrs)
            self.preparation = {
                "patches": json.loads(file.attrs.get("config", "{}")),
                "clip_negative_concentration": bool(file.attrs.get("clip_negative_concentration")),
                "units": self.units,
            }
            """How the patches were made of raw files; with ``normalisation`` all that other data takes."""
            self.digest = str(file.attrs["digest"])
        self.weighted_variable = weighted(config.variables)
        normalisation = statistics or Normalisation(
            variables=config.variables,
            mean_V=stats["obs_mean"][self._state_columns],
            std_V=stats["obs_std"][self._state_columns],
            increment_std_V=stats["increment_std"][self._state_columns],
            forcings=config.forcings,
            forcing_mean_F=stats["forcing_mean"][self._forcing_columns],
            forcing_std_F=stats["forcing_std"][self._forcing_columns],
            low_D=np.min([box.min(axis=0) for box in boxes], axis=0),
            high_D=np.max([box.max(axis=0) for box in boxes], axis=0),
        )
        is_foreign = statistics is not None
        super().__init__(
            patches, config, time, split, normalisation, is_foreign, device, cache_bytes
        )
        if graph is None:
            return
        with open_checked(graph, "millrace.graph/1") as file:
            if str(file.attrs["patches_digest"]) != self.digest:
                raise ConfigError(
                    f"{graph}: made from other patches than {patches}; delete it and run again"
                )
            self.digest += f"/{file.attrs['digest']}"

    @property
    def in_channels(self) -> int:
        """Channels of `PatchBatch.x_NBC`."""
        steps, config = self.config.input_steps, self.config
        return steps * len(config.variables) + 2 * len(config.forcings) * config.output_steps + 3

    def at_times(self, group: int, starts: np.ndarray) -> PatchBatch:
        """Windows of a patch that begin at the given time indices, whatever their split."""
        patch, config = self._series(group), self.config
        starts_B = torch.from_numpy(np.asarray(starts)).to(self.device)
        steps_BT = starts_B[:, None] + torch.arange(config.length, device=self.device)
        past_BT, future_BT = steps_BT.split([config.input_steps, config.output_steps], dim=1)
        past_NBTV = patch.state_NTV[:, past_BT]
        n_core = patch.geometry.n_core
        parts = [past_NBTV.flatten(2), patch.position_N3[:, None].expand(-1, len(starts_B), -1)]
        if config.forcings:
            parts.insert(1, patch.forcing_NTF[:, future_BT].flatten(2))
        return PatchBatch(
            x_NBC=torch.cat(parts, dim=2),
            last_KBV=past_NBTV[:n_core, :, -1],
            y_KBTV=patch.state_NTV[:n_core, future_BT],
            scale_V=self._scale_V,
            variance_weight_KV=patch.variance_weight_KV,
            weight_B=torch.ones(len(starts), device=self.device),
            geometry=patch.geometry,
        )

    def with_states(self, batch: PatchBatch, past_NBTV: Tensor) -> PatchBatch:
        """Replace the past states of a batch, for forecasts that feed on their own output."""
        n_state = self.config.input_steps * len(self.config.variables)
        x_NBC = torch.cat([past_NBTV.flatten(2), batch.x_NBC[:, :, n_state:]], dim=2)
        last_KBV = past_NBTV[: batch.geometry.n_core, :, -1]
        return replace(batch, x_NBC=x_NBC, last_KBV=last_KBV)

    def core_states(self, group: int, steps: np.ndarray) -> Tensor:
        """States of a patch's core points at time indices of any shape S, [K, *S, V]."""
        patch = self._series(group)
        index = torch.from_numpy(np.asarray(steps)).to(self.device)
        return patch.state_NTV[: patch.geometry.n_core, index]

    def _read(self, group: int) -> _PatchSeries:
        name = f"patch_{group:02d}"
        with open_checked(self._patches_path, "millrace.patches/1") as file:
            patch = file[name]
            coords = patch["coords"][()]
            state_TNV = (patch["obs"][()][..., self._state_columns] - self.mean) / self.std
            value_TNF = patch["forcing"][()][..., self._forcing_columns]
            mask_TNF = patch["forcing_mask"][()][..., self._forcing_columns].astype(np.float32)
        # Where no boundary condition is given, the value is the mean (0 after normalisation) and the
        # mask says so: 0 m would be a head like any other.
        stats = self.normalisation
        value_TNF = (value_TNF - stats.forcing_mean_F) / stats.forcing_std_F * mask_TNF
        state_NTV = self._tensor(state_TNV.swapaxes(0, 1))
        core_KTV = state_NTV[: len(self.core_nodes[group]), slice(*self._split[0])]
        return _PatchSeries(
            state_NTV=state_NTV,
            forcing_NTF=self._tensor(np.concatenate([value_TNF, mask_TNF], 2).swapaxes(0, 1)),
            position_N3=self._tensor(stats.unit_coords(coords)),
            variance_weight_KV=variance_weights(core_KTV, self.config.variables),
            geometry=self._geometry(name, unit_coords(coords), len(self.core_nodes[group])),
        )

    def _geometry(self, name: str, unit_N3: np.ndarray, n_core: int) -> PatchGeometry:
        points_N3 = self._tensor(unit_N3)
        if self._graph_path is None:
            return PatchGeometry(points_N3, n_core)
        with open_checked(self._graph_path, "millrace.graph/1") as file:
            latent = file["latent"][()]
            shape = tuple(int(n) for n in file.attrs["latent_shape"])
            tables = {
                side: CSR(file[name][side]["indptr"][()], file[name][side]["index"][()])
                for side in ("in", "out")
            }
        return LatentGeometry(
            points_N3,
            n_core,
            latent_G3=self._tensor(latent),
            latent_shape=shape,
            into_latent=NeighbourTable.from_csr(tables["in"], len(points_N3)).to(self.device),
            from_latent=NeighbourTable.from_csr(tables["out"], len(latent)).to(self.device),
        )


def _count_patches(file: object) -> int:
    return sum(name.startswith("patch_") for name in file)  # type: ignore[attr-defined]


def _columns(wanted: Sequence[str], present: list[str], key: str, path: Path) -> list[int]:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise ConfigError(f"data.{key}: {path} has no {missing[0]!r}; it has {', '.join(present)}")
    return [present.index(name) for name in wanted]
