"""Models of groundwater as programs, see `millrace.evaluation.program`.

Shape suffixes: B samples, T past steps, L steps ahead, N points of a patch, K core points (the first ones),
V variables, F forcings, G points of the latent grid, P planes, S cells of all planes, M points of all
boundaries, C input channels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from millrace.data.hdf5 import open_checked
from millrace.evaluation.program import BATCH, NotExportable, Program, Scaling, Value
from millrace.evaluation.trained_model import TrainedModel, finite
from millrace.systems.groundwater.gfno import GFNO
from millrace.systems.groundwater.gno import NeighbourTable, embed
from millrace.systems.groundwater.hdf5_parts import group_names
from millrace.systems.groundwater.patch_dataset import (
    LatentGeometry,
    PatchBatch,
    PatchDataset,
    PatchGeometry,
)
from millrace.systems.groundwater.patch_file import SCHEMA, read_nodes
from millrace.systems.groundwater.plane_dataset import PlaneDataset

_UNKNOWN = "NaN where none is given"


class PatchProgram(nn.Module):
    """From the states of a patch of any mesh, and its neighbours on the latent grid, to forecasts.

    Of models without a latent grid the neighbours are the numbers of the core points alone.
    """

    latent_G3: Tensor

    def __init__(self, model: TrainedModel, geometry: PatchGeometry) -> None:
        super().__init__()
        dataset: PatchDataset = model.dataset
        self.net, self._predict = model.module, model.spec.predict
        stats, self._steps = dataset.normalisation, dataset.config.input_steps
        self._n_forcings = len(dataset.config.forcings)
        self._shape = getattr(geometry, "latent_shape", ())
        self.states = Scaling(stats.mean_V, stats.std_V)
        self.forcings = Scaling(stats.forcing_mean_F, stats.forcing_std_F)
        self.place = Scaling(stats.low_D, np.maximum(stats.high_D - stats.low_D, 1e-12))
        self.register_buffer("latent_G3", getattr(geometry, "latent_G3", None))
        scale_V = torch.from_numpy(dataset.increment_scale).float()
        self.register_buffer("scale_V", scale_V)

    def forward(
        self,
        states_BTNV: Tensor,
        coords_N3: Tensor,
        *others: Tensor,
    ) -> Tensor:
        """Forecast of the core points, [B, L, K, V]."""
        past_NBTV = self.states.normalised(states_BTNV).permute(2, 0, 1, 3)
        parts = [past_NBTV.flatten(2)]
        if self._n_forcings:
            values = _with_mask(self.forcings, others[0])
            parts.append(values.permute(2, 0, 1, 3).flatten(2))
        place_N3 = self.place.normalised(coords_N3)
        parts.append(place_N3[:, None].expand(-1, past_NBTV.shape[1], -1))
        low_3, high_3 = coords_N3.double().amin(dim=0), coords_N3.double().amax(dim=0)
        extent_3 = torch.where(high_3 > low_3, high_3 - low_3, 1.0)
        points_N3 = ((coords_N3.double() - low_3) / extent_3).float()
        if self._shape:
            into_ends, into_point, from_ends, from_latent = others[-4:]
            n_core = from_ends.shape[0] - 1
            geometry: PatchGeometry = LatentGeometry(
                points_N3,
                n_core,
                self.latent_G3,
                latent_shape=self._shape,
                into_latent=NeighbourTable.of(into_ends, into_point, points_N3.shape[0]),
                from_latent=NeighbourTable.of(from_ends, from_latent, len(self.latent_G3)),
            )
        else:
            n_core = others[-1].shape[0]
            geometry = PatchGeometry(points_N3, n_core)
        last_KBV = past_NBTV[:n_core, :, -1]
        batch = PatchBatch(
            x_NBC=torch.cat(parts, dim=2),
            last_KBV=last_KBV,
            y_KBTV=last_KBV,
            scale_V=self.get_buffer("scale_V"),
            variance_weight_KV=last_KBV,
            weight_B=last_KBV,
            geometry=geometry,
            input_steps=self._steps,
        )
        return self.states.physical(self._predict(self.net, batch).permute(1, 2, 0, 3))


class PlaneProgram(nn.Module):
    """From the states and boundary values of all sections of the training to forecasts on them.

    The sections are one graph, and side by side in the Fourier layers, as samples are.
    """

    def __init__(self, net: GFNO, dataset: PlaneDataset) -> None:
        super().__init__()
        self.net, stats = net, dataset.normalisation
        self.states = Scaling(stats.mean_V, stats.std_V)
        self.boundary = Scaling(stats.forcing_mean_F, stats.forcing_std_F)
        start = np.zeros(1, dtype=np.int64)
        batches = [dataset.at_times(p, start) for p in range(len(dataset.core_nodes))]
        planes = [batch.geometry for batch in batches]
        self._shape, steps = planes[0].latent_shape, planes[0].latent_shape[0]
        n_latent, n_cells = len(planes[0].latent_G3), int(np.prod(self._shape[1:]))
        n_boundary = [len(one.boundary_N3) // steps for one in planes]
        first = np.cumsum([0, *n_boundary])
        # Boundary points step by step over all sections; sections one after the other on the grid.
        number = [
            (torch.arange(steps)[:, None] * first[-1] + first[p] + torch.arange(n)).flatten()
            for p, n in enumerate(n_boundary)
        ]
        boundary = torch.cat([embed(net.gno, one.boundary_N3) for one in planes]).cpu()
        counts = torch.cat([one.into_latent.indptr.diff().cpu() for one in planes])
        pairs = zip(planes, number, strict=True)
        point = torch.cat([n[one.into_latent.index.cpu()] for one, n in pairs])
        constant = [b.features_BFTHW[0, : -len(stats.variables)].flatten(1) for b in batches]
        for name, tensor in (
            ("boundary_ND", boundary[torch.argsort(torch.cat(number))]),
            ("latent_GD", torch.cat([embed(net.gno, one.latent_G3) for one in planes])),
            ("ends", torch.cat([counts.new_zeros(1), counts.cumsum(0)])),
            ("point", point),
            ("constant_FPG", torch.stack(constant, dim=1)),
            ("cell_S", torch.cat([one.cell_K.cpu() + p * n_cells for p, one in enumerate(planes)])),
        ):
            self.register_buffer(name, tensor.detach().to(dataset.device))
        self._basis = net.fno_blocks.basis(self._shape)
        self._n_planes, self._n_latent, self._n_cells = len(planes), n_latent, n_cells

    def forward(self, states_BTSV: Tensor, boundary_BTMF: Tensor) -> Tensor:
        """Forecast in all cells, [B, L, S, V]."""
        net, buffer = self.net, self.get_buffer
        past_BTSV = self.states.normalised(states_BTSV)
        samples, steps = past_BTSV.shape[0], self._shape[0]
        planes, cells = self._n_planes, self._n_cells
        x_NBC = _with_mask(self.boundary, boundary_BTMF).permute(1, 2, 0, 3).flatten(0, 1)
        boundary_ND = buffer("boundary_ND")
        table = NeighbourTable.of(buffer("ends"), buffer("point"), len(boundary_ND))
        x_CGB = net.encode(x_NBC, table, boundary_ND, buffer("latent_GD"))
        grid = past_BTSV.new_zeros(samples, steps, planes * cells, past_BTSV.shape[3])
        grid = grid.index_copy(2, buffer("cell_S"), past_BTSV).unflatten(2, (planes, cells))
        features = [
            x_CGB.unflatten(1, (planes, -1)),
            buffer("constant_FPG")[..., None].expand(-1, -1, -1, samples),
            grid.permute(4, 2, 1, 3, 0).flatten(2, 3),
        ]
        columns = torch.cat(features).transpose(1, 2).flatten(1)
        h = net.lifting(columns, rows=True).unflatten(0, (self._n_latent, -1))
        h = net.fno_blocks(h, self._basis).unflatten(1, (planes, -1))
        h = h.unflatten(0, (steps, cells)).transpose(1, 2).flatten(1, 2)
        h_TSBH = h.index_select(1, buffer("cell_S"))
        change = net.projection(h_TSBH.flatten(0, 2).t())
        change_BTSV = change.unflatten(1, (steps, -1, samples)).permute(3, 1, 2, 0)
        forecast = past_BTSV[:, -1:] + net.increment_scale_V * change_BTSV
        return self.states.physical(forecast)


def groundwater_program(
    model: TrainedModel, files: Mapping[str, Any], radius: float | None
) -> Program:
    """Program of a model on patches or on sections, and examples from its sample files.

    ``radius`` is that of the neighbourhoods in the unit cube.
    """
    if isinstance(model.dataset, PlaneDataset):
        if not isinstance(model.module, GFNO):
            raise NotExportable(
                f"model {model.spec.name}: of the models on sections, GFNO alone can be exported as a "
                "program"
            )
        return _of_planes(model)
    return _of_patch(model, Path(files["patches"]), radius)


def _of_patch(model: TrainedModel, patches: Path, radius: float | None) -> Program:
    dataset: PatchDataset = model.dataset
    config, device = dataset.config, dataset.device
    group = int(np.argmax(dataset.group_costs))
    starts = np.arange(2)
    batch = dataset.at_times(group, starts)
    geometry = batch.geometry
    past = torch.from_numpy(dataset.to_physical(batch.past_NBTV)).permute(1, 2, 0, 3)
    expected = dataset.to_physical(finite(model(batch)))
    stats, units = dataset.normalisation, {n: dataset.units[n] for n in config.variables}
    n_forcings = len(config.forcings)
    with open_checked(patches, SCHEMA) as file:
        coords = torch.from_numpy(file[group_names(file)[group]]["coords"][()])
    inputs = [
        Value("states", past.float().to(device), (BATCH, "time", "point", "variable"), units,
              "consecutive states of the points of a patch, its core points first"),
        Value("coords", coords.to(device), ("point", "xyz"), "m", "of the points"),
    ]  # fmt: skip
    labels = {"variable": config.variables}
    if n_forcings:
        n_state = config.input_steps * len(config.variables)
        x = batch.x_NBC[:, :, n_state:-3].unflatten(2, (config.output_steps, 2 * n_forcings))
        given = _unscaled(x, stats.forcing_mean_F, stats.forcing_std_F).permute(1, 2, 0, 3)
        axes = (BATCH, "lead", "point", "forcing")
        inputs.append(Value("forcings", given.to(device), axes, "as in the raw files", _UNKNOWN))
        labels["forcing"] = config.forcings
    free, notes = {BATCH: 1, "point": 2}, ["A patch at a time, in coordinates of the raw files."]
    if isinstance(geometry, LatentGeometry):
        inputs += _neighbours(geometry)
        free |= {"into_edge": 1, "core_bounds": 3, "from_edge": 1}
        shape = " x ".join(map(str, geometry.latent_shape))
        notes.append(
            "Its points are mapped to the unit cube by their own box, in which the latent grid of "
            f"{shape} points, ends included and the last axis fastest, lies; neighbours are those within "
            f"{radius:g} of it. `--source` and `--example` write those of all patches of a mesh."
        )
    else:
        inputs += _neighbours(geometry)
        free["core_point"] = 1
    return Program(
        PatchProgram(model, geometry).to(device),
        inputs,
        outputs=[
            Value("forecast", torch.from_numpy(expected).permute(1, 2, 0, 3).float().to(device),
                  (BATCH, "lead", "core_point", "variable"), units, "the next states of the core points")
        ],
        own=lambda: model(batch),
        labels=labels,
        free=free,
        notes=notes,
        beside=_mesh(dataset, patches),
    )  # fmt: skip


def _mesh(dataset: PatchDataset, patches: Path) -> dict[str, Tensor]:
    """Places and ids of all points of the mesh, and of each patch its points and their neighbours.

    The program runs on the whole mesh with it, a patch at a time.
    """
    nodes = read_nodes(patches)
    found = {"mesh.coords": torch.from_numpy(nodes.coords_N3)}
    if nodes.node_N is not None:
        found["mesh.node"] = torch.from_numpy(nodes.node_N)
    pairs = zip(dataset.core_nodes, dataset.ghost_nodes, strict=True)
    for number, (core, ghost) in enumerate(pairs):
        patch = f"patch_{number:04d}"
        found[f"{patch}.point"] = torch.from_numpy(np.concatenate([core, ghost]))
        geometry = dataset.at_times(number, np.zeros(1, dtype=np.int64)).geometry
        found |= {f"{patch}.{one.name}": one.tensor for one in _neighbours(geometry)}
    return found


def _neighbours(geometry: PatchGeometry) -> list[Value]:
    """Tables of the graph layers as inputs; without a latent grid the numbers of the core points."""
    if not isinstance(geometry, LatentGeometry):
        core = torch.arange(geometry.n_core, device=geometry.points_N3.device)
        return [Value("core_point", core, ("core_point",), "1", "numbers of the core points")]
    into, out = geometry.into_latent, geometry.from_latent
    return [
        Value("into_ends", into.indptr, ("latent_bounds",), "1",
              "latent point g has the neighbours into_point[into_ends[g] : into_ends[g + 1]]"),
        Value("into_point", into.index, ("into_edge",), "1", "points, ascending for each latent point"),
        Value("from_ends", out.indptr, ("core_bounds",), "1",
              "core point k has the neighbours from_latent[from_ends[k] : from_ends[k + 1]]"),
        Value("from_latent", out.index, ("from_edge",), "1", "latent points, ascending for a core point"),
    ]  # fmt: skip


def _of_planes(model: TrainedModel) -> Program:
    dataset: PlaneDataset = model.dataset
    config, device, stats = dataset.config, dataset.device, dataset.normalisation
    starts, states, boundary, expected = np.arange(2), [], [], []
    batches = [dataset.at_times(plane, starts) for plane in range(len(dataset.core_nodes))]
    for batch in batches:
        states.append(dataset.to_physical(batch.past_NBTV))
        expected.append(dataset.to_physical(finite(model(batch))))
        x_TMBC = batch.x_NBC.unflatten(0, (config.input_steps, -1))
        boundary.append(_unscaled(x_TMBC, stats.forcing_mean_F, stats.forcing_std_F))

    def joined(parts: list[Any]) -> Tensor:
        values = np.concatenate(parts)
        return torch.from_numpy(values).permute(1, 2, 0, 3).float().to(device)

    units = {name: dataset.units[name] for name in config.variables}
    when = "given" if config.boundary == "input" else "forecast"
    fields = ("cell", "variable")
    return Program(
        PlaneProgram(cast(GFNO, model.module), dataset).to(device),
        inputs=[
            Value("states", joined(states), (BATCH, "time", *fields), units,
                  "consecutive states in the cells of all sections"),
            Value("boundary", torch.cat(boundary, dim=1).permute(2, 0, 1, 3).to(device),
                  (BATCH, "time", "boundary_point", "forcing"), "as in the raw files",
                  f"values on the boundaries of all sections at the {when} steps; {_UNKNOWN}"),
        ],
        outputs=[
            Value("forecast", joined(expected), (BATCH, "lead", *fields), units, "the next states")
        ],
        own=lambda: [model(batch) for batch in batches],
        labels={"variable": config.variables, "forcing": stats.forcings},
        notes=["Cells and boundary points are those of the sections of the training, in their order."],
    )  # fmt: skip


def _with_mask(scaling: Scaling, values: Tensor) -> Tensor:
    """Normalised, 0 where none is given, then 1 for each that is given."""
    given = ~values.isnan()
    normalised = torch.where(given, scaling.normalised(values), 0.0)
    return torch.cat([normalised, given.float()], dim=-1)


def _unscaled(x: Tensor, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """Physical values from normalised ones and their masks, NaN where none is given."""
    values, given = x.double().cpu().chunk(2, dim=-1)
    physical = values * torch.from_numpy(std) + torch.from_numpy(mean)
    return torch.where(given > 0, physical, torch.nan).float()
