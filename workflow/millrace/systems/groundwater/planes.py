"""Planes: vertical sections of the aquifer on regular grids, with the boundary conditions on them.

S is the distance along a section (m), Z the elevation (m). Fields are interpolated from the nodes once;
cells outside the aquifer are masked and hold 0.

Memory does not grow with the number of times. Held are some arrays of the nodes and the triangles of one
slice, or of all of them if they differ in plan view: about 200 bytes a node, or 400. Of the states of all
nodes about `SLAB_BYTES` are held, or one time if that is more.

Shape suffixes: T time steps, H x W cells along S x Z, V variables, N nodes, M boundary points.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from millrace.data.hdf5 import create, create_dataset, open_checked, rows_per_chunk
from millrace.errors import ConfigError
from millrace.systems.base import Progress
from millrace.systems.groundwater.hdf5_parts import Statistics, write_origin
from millrace.systems.groundwater.layered_mesh import LayeredMesh
from millrace.systems.groundwater.series import SCHEMA as SERIES_SCHEMA
from millrace.systems.groundwater.settings import PlaneConfig

SCHEMA = "millrace.planes/1"
BOUNDARY = {"head": "head_bc", "mass_concentration": "mass_concentration_bc"}
"""Columns of the boundary values, and the forcings they are."""

Floats = NDArray[np.float64]
Point = tuple[float, float]

SLAB_BYTES = 32 << 20
_NOTHING = 1e-9  # of the weights of a point: that of a corner on whose opposite side it lies
_SAMPLES = 2_000  # of a line through the aquifer when its ends are sought


@dataclass(frozen=True, eq=False)
class Section:
    """Geometry of a plane."""

    endpoints: Floats
    """float64[2, 2]: X, Y (m) at S = 0 and at the largest S."""
    coords_HW2: Floats
    """S, Z (m) of each cell."""
    mask_HW: NDArray[np.bool_]
    """Whether a cell lies in the aquifer."""
    bc_coords_M2: Floats
    """S, Z (m) of the boundary points."""


def extract_planes(
    series: Path, output: Path, config: PlaneConfig, progress: Progress | None = None
) -> None:
    """Write ``planes.h5``, which appears when it is complete: fields and boundary conditions of sections.

    Boundary points are the nodes within half a node spacing of the section for which a head or a mass
    concentration is prescribed at some time. Statistics are those of the valid cells and the given
    boundary values of the training period. ``progress`` is called with (steps done, all).

    Raises
    ------
    ConfigError
        A section misses the aquifer or its boundary conditions, or the shore cannot be told.
    DataError
        The mesh has no slices that can be triangulated.
    """
    with open_checked(series, SERIES_SCHEMA) as source, create(output) as file:
        mesh = _mesh(source)
        variables = list(source["obs"].attrs["variables"])
        ends = (
            np.array(config.transects) if config.transects else _shore_normal(source, mesh, config)
        )
        fixed_N = _boundary_nodes(source)
        writer = PlaneWriter(file, source["time"][()], source["split"][()], variables)
        slab = _slab_steps(source["obs"], config.shape)
        weights, bc_nodes = [], []
        for number, endpoints in enumerate(ends):
            section, matrix, nodes = _section(source, mesh, endpoints, fixed_N, config, number)
            writer.add_plane(section, slab)
            weights.append(matrix)
            bc_nodes.append(nodes)
        for start, fields, forcing, given in _slabs(source, vstack(weights), bc_nodes, slab):
            shape = (len(ends), *config.shape, *fields.shape[1:])
            for plane, field_HWTV in enumerate(fields.reshape(shape)):
                writer.write_field(plane, start, field_HWTV.transpose(2, 0, 1, 3))
                writer.write_boundary(plane, start, forcing[plane], given[plane])
            if progress is not None:
                progress(min(start + slab, len(source["time"])), len(source["time"]))
        units = list(source["obs"].attrs.get("units", []))
        writer.finish(str(source.attrs["digest"]), config.model_dump(), units)
        clipped = bool(source["obs"].attrs.get("clip_negative_concentration"))
        file.attrs["clip_negative_concentration"] = clipped
        if "missing" in source.attrs:
            file.attrs["missing"] = source.attrs["missing"]


class PlaneWriter:
    """Fills a `planes.h5` and gathers its statistics on the way; each plane in order of time."""

    def __init__(
        self, file: h5py.File, time_T: Floats, split: NDArray[np.int64], variables: Sequence[str]
    ) -> None:
        self._file, self._train = file, int(split[0, 1])
        self._variables, self._n_steps = list(variables), len(time_T)
        self._groups: list[h5py.Group] = []
        self._masks: list[NDArray[np.bool_]] = []
        self._last: dict[int, Floats] = {}
        self._statistics = Statistics(len(variables), len(BOUNDARY))
        create_dataset(file, "time", time_T)
        create_dataset(file, "split", split)

    def add_plane(self, section: Section, slab: int) -> None:
        """Append a plane that will be written ``slab`` steps at a time."""
        group = self._file.create_group(f"plane_{len(self._groups):02d}")
        self._groups.append(group)
        create_dataset(group, "endpoints", section.endpoints)
        create_dataset(group, "coords", section.coords_HW2)
        create_dataset(group, "mask", section.mask_HW, dtype=np.uint8)
        create_dataset(group, "bc_coords", section.bc_coords_M2)
        self._masks.append(section.mask_HW)
        boundary = (len(section.bc_coords_M2), len(BOUNDARY))
        for name, size, dtype in (
            ("field", (*section.mask_HW.shape, len(self._variables)), np.float32),
            ("bc", boundary, np.float32),
            ("bc_mask", boundary, np.uint8),
        ):
            shape = (self._n_steps, *size)
            chunks = (min(slab, rows_per_chunk(shape, dtype)), *size)
            create_dataset(group, name, shape=shape, dtype=dtype, chunks=chunks)

    def write_field(self, plane: int, start: int, field_THWV: NDArray[np.floating]) -> None:
        """Write the steps from ``start`` on; values outside the mask are replaced by 0."""
        mask = self._masks[plane]
        stop = start + len(field_THWV)
        values = np.where(mask[..., None], field_THWV, 0)
        self._groups[plane]["field"][start:stop] = values
        train_TKV = values[: max(0, self._train - start), mask].astype(np.float64)
        if not len(train_TKV):
            return
        columns = (-1, len(self._variables))
        self._statistics.fields.add(train_TKV.reshape(columns))
        if plane in self._last:
            train_TKV = np.concatenate([self._last[plane][None], train_TKV])
        self._statistics.increments.add(np.diff(train_TKV, axis=0).reshape(columns))
        self._last[plane] = train_TKV[-1]

    def write_boundary(
        self, plane: int, start: int, value_TMC: NDArray[np.floating], given_TMC: NDArray
    ) -> None:
        """Write the boundary values from ``start`` on, 0 where none is given."""
        group, stop = self._groups[plane], start + len(value_TMC)
        values = np.where(given_TMC, value_TMC, 0)
        group["bc"][start:stop] = values
        group["bc_mask"][start:stop] = given_TMC
        train = slice(0, max(0, self._train - start))
        columns = (-1, len(BOUNDARY))
        given = given_TMC[train].reshape(columns)
        self._statistics.forcings.add(values[train].reshape(columns), given)

    def finish(self, source_digest: str, options: object, units: Sequence[str]) -> None:
        """Add statistics and attributes."""
        self._statistics.write(self._file, "bc")
        write_origin(
            self._file,
            SCHEMA,
            source_digest,
            options,
            variables=self._variables,
            units=units,
            boundary=list(BOUNDARY),
        )


def _mesh(source: h5py.File) -> LayeredMesh:
    """Nodes of the series, then those without values, so that nothing is interpolated across them."""
    parts = [source, source["masked"]] if "masked" in source else [source]
    coords, slices = (np.concatenate([p[name][()] for p in parts]) for name in ("coords", "slice"))
    return LayeredMesh(coords, slices)


def _slab_steps(obs: h5py.Dataset, shape: tuple[int, int]) -> int:
    """Steps read at a time: a whole number of chunks of the fields, or less than one."""
    step_bytes = 4 * obs.shape[2] * max(obs.shape[1], shape[0] * shape[1])
    steps = max(1, min(obs.shape[0], SLAB_BYTES // step_bytes))
    chunk = rows_per_chunk((steps, *shape, obs.shape[2]), np.float32)
    return steps // chunk * chunk


def _shore_normal(source: h5py.File, mesh: LayeredMesh, config: PlaneConfig) -> Floats:
    """End points [P, 2, 2] of sections along the steepest change of the mean field, inland first."""
    variables = list(source["obs"].attrs["variables"])
    # Salt rises towards the sea, the head of the groundwater falls.
    signs = {"mass_concentration": 1.0, "head": -1.0}
    name = next((name for name in signs if name in variables), None)
    if name is None:
        raise ConfigError(
            "planes.count: the shore is found from mass_concentration or head, and the dataset has neither "
            "among its variables; add one, or give planes.transects"
        )
    column = variables.index(name)
    total, train = np.zeros(len(source["node"])), int(source["split"][0, 1])
    for start in range(0, train, 64):
        # In this order of sums the last digits of sections stay those of earlier versions.
        some = np.zeros(len(total))
        for step in range(start, min(start + 64, train)):
            some += source["obs"][step, :, column]
        total += some
    offset = source["coords"][:, :2] - mesh.origin
    plane, *_ = np.linalg.lstsq(np.c_[offset, np.ones(len(offset))], total / train, rcond=None)
    slope = signs[name] * plane[:2]
    if not np.hypot(*slope) > 0:
        raise ConfigError(
            f"planes.count: the mean {name} has no gradient; give planes.transects instead"
        )
    normal = slope / np.hypot(*slope)
    coast = np.array([-normal[1], normal[0]])
    low, high = (offset @ coast).min(), (offset @ coast).max()
    distance = np.linspace((offset @ normal).min(), (offset @ normal).max(), _SAMPLES)
    ends: list[Floats] = []
    for position in low + (np.arange(config.count) + 0.5) / config.count * (high - low):
        line = mesh.origin + position * coast + distance[:, None] * normal
        covered = np.flatnonzero(mesh.covers(line))
        if len(covered) < 2:
            raise ConfigError(
                f"planes.count = {config.count}: section {len(ends)} misses the aquifer; give "
                "planes.transects instead"
            )
        ends.append(line[covered[[0, -1]]])
    return np.stack(ends)


def _forcing_columns(source: h5py.File) -> list[int | None]:
    present = list(source["forcing"].attrs["variables"])
    columns = [present.index(name) if name in present else None for name in BOUNDARY.values()]
    if columns == [None, None]:
        raise ConfigError(
            f"planes: the dataset keeps none of {', '.join(BOUNDARY.values())}, which planes take as "
            "their boundary conditions; add them to its forcings"
        )
    return columns


def _boundary_nodes(source: h5py.File) -> NDArray[np.bool_]:
    """Nodes for which a head or a concentration is prescribed at some time, bool[N]."""
    columns = [column for column in _forcing_columns(source) if column is not None]
    given, fixed = source["forcing_mask"], np.zeros(len(source["node"]), dtype=bool)
    together = max(1, SLAB_BYTES // (given.shape[1] * given.shape[2]))
    for start in range(0, len(given), together):
        fixed |= given[start : start + together][..., columns].any(axis=(0, 2))
    return fixed


def _section(
    source: h5py.File,
    mesh: LayeredMesh,
    endpoints: Floats,
    fixed_N: NDArray[np.bool_],
    config: PlaneConfig,
    number: int,
) -> tuple[Section, csr_array, NDArray[np.int64]]:
    """Geometry of a section, its interpolation [H * W, N], and the nodes of its boundary points."""
    length = float(np.hypot(*(endpoints[1] - endpoints[0])))
    direction = (endpoints[1] - endpoints[0]) / length
    s_H = np.linspace(0, length, config.shape[0])
    columns = mesh.columns(endpoints[0] + s_H[:, None] * direction)
    if not columns.inside_H.any():
        raise ConfigError(
            f"planes: section {number} from {endpoints[0].tolist()} to {endpoints[1].tolist()} does not "
            "cross the aquifer; check the end points (X and Y of the raw files)"
        )
    z_W = np.linspace(np.nanmin(columns.bottom_H), np.nanmax(columns.top_H), config.shape[1])
    weights, mask_HW = columns.interpolation(z_W)
    coords = source["coords"][()]
    n_nodes = len(coords)
    masked_HW = (weights[:, n_nodes:].sum(axis=1) > _NOTHING).reshape(mask_HW.shape)
    weights, mask_HW = weights[:, :n_nodes], mask_HW & ~masked_HW
    offset = coords[:, :2] - endpoints[0]
    along, across = offset @ direction, offset @ np.array([-direction[1], direction[0]])
    reach = mesh.spacing[:n_nodes] / 2
    near = (np.abs(across) <= reach) & (along >= -reach) & (along <= length + reach)
    nodes = np.flatnonzero(fixed_N & near)
    if not len(nodes):
        raise ConfigError(
            f"planes: section {number} has no node with a head or concentration boundary condition within "
            "half a node spacing; let it run to the sea or to the inland edge"
        )
    bc_coords = np.column_stack([along[nodes].clip(0, length), coords[nodes, 2]])
    grid = np.stack(np.meshgrid(s_H, z_W, indexing="ij"), axis=2)
    return Section(endpoints, grid, mask_HW, bc_coords), weights, nodes


def _slabs(
    source: h5py.File, weights: csr_array, bc_nodes: Sequence[NDArray[np.int64]], slab: int
) -> Iterator[tuple[int, Floats, list[NDArray], list[NDArray]]]:
    """Steps at a time: the first step, fields [P * H * W, T, V], boundary values and masks [T, M, 2]."""
    used = np.unique(weights.indices)
    weights = weights[:, used]
    columns = _forcing_columns(source)
    for start in range(0, len(source["time"]), slab):
        stop = min(start + slab, len(source["time"]))
        obs_NTV = source["obs"][start:stop][:, used].swapaxes(0, 1).astype(np.float64)
        field = (weights @ obs_NTV.reshape(len(used), -1)).reshape(-1, *obs_NTV.shape[1:])
        boundary = []
        for name in ("forcing", "forcing_mask"):
            values = source[name][start:stop]
            absent = np.zeros(values.shape[:2], values.dtype)
            both = [absent if column is None else values[..., column] for column in columns]
            stacked = np.stack(both, axis=2)
            boundary.append([stacked[:, nodes] for nodes in bc_nodes])
        yield start, field, *boundary
